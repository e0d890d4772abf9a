"""Xen's libraries as they are installed here; there is no Xen below."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hotplug.restore import xenlibs, xenstate
from hotplug.restore.xenlibs import UnavailableError

LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
INSTALLED = [
    version
    for path in LIBRARIES.glob("libxenctrl.so.4.*")
    if (version := path.name.removeprefix("libxenctrl.so.")).count(".") == 1
]


def test_all_that_is_called_is_there():
    assert INSTALLED
    for version in INSTALLED:
        for signatures in (xenlibs.SIGNATURES, xenstate.SIGNATURES):
            found = xenlibs.load(version, signatures)
            assert set(found) == {name for _, name, _, _ in signatures}
            assert all(function.argtypes for function in found.values())


@pytest.mark.parametrize("version", ["4.13", "4.21", "3.17", "5.17"])
def test_a_release_that_is_not_known(version):
    with pytest.raises(UnavailableError, match=f"Xen {version} is not one of 4.14 to 4.20"):
        xenlibs.load(version)


def test_a_release_whose_libraries_are_not_here():
    other = next(f"4.{n}" for n in range(14, 21) if f"4.{n}" not in INSTALLED)
    with pytest.raises(UnavailableError, match=re.escape(f"libxenctrl.so.{other}")):
        xenlibs.load(other)


def test_a_function_that_is_not_there(monkeypatch):
    strange = ("ctrl guest", "xc_dance", None, ())
    monkeypatch.setattr(xenlibs, "SIGNATURES", (*xenlibs.SIGNATURES, strange))
    with pytest.raises(UnavailableError, match="its libraries have no xc_dance"):
        xenlibs.load(INSTALLED[0])


def test_no_hypervisor(monkeypatch, tmp_path):
    monkeypatch.setattr(xenlibs, "VERSION", str(tmp_path))
    with pytest.raises(UnavailableError, match="tells no release of Xen"):
        xenlibs.release()
