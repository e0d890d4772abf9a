"""What ``savefile info`` knows of a file."""

from __future__ import annotations

import json

import pytest
import savefiles
from savefiles import Hvm, Legacy, Page, Pv

from hotplug.restore import summary
from hotplug.restore.image import Image


@pytest.fixture
def info(tmp_path):
    def run(content, *, quick=False):
        path = tmp_path / "a.save"
        path.write_bytes(content)
        with path.open("rb") as file:
            image = Image(file.fileno(), "a.save")
            found = summary.summarise(image, quick=quick)
            facts = summary.facts(found, image, quick=quick)
        assert json.loads(json.dumps(facts)) == facts
        return facts

    return run


def test_a_pv_guest(info):
    content = Pv(vcpus=2).file(tail=b"abc")
    facts = info(content)
    assert facts["size"] == len(content)
    assert facts["layers"] == ["xl", "libxl version 2", "libxc version 3"]
    assert facts["form"] == "plain"
    assert facts["name"] == "test guest"
    assert facts["guest"] == {"type": "pv", "bits": 64, "pages": 16, "bytes": 65536, "vcpus": 2}
    assert facts["saved_by_xen"] == "4.17"
    assert facts["trailing_bytes"] == 3
    pages = facts["pages"]
    assert pages["with_data"] == 14
    assert pages["zero"] == 7
    assert pages["in_holes"] == 0
    assert pages["page_tables"] == 4
    assert pages["by_type"] == {
        "normal": 10,
        "L1 page table": 1,
        "L3 page table": 1,
        "L1 page table, pinned": 1,
        "L4 page table, pinned": 1,
        "broken": 1,
        "absent": 1,
    }
    records = {(one["layer"], one["name"]): one for one in facts["records"]}
    assert records["libxc", "PAGE_DATA"]["count"] == 4
    assert records["libxc", "PAGE_DATA"]["bytes"] == 4 * 8 + 16 * 8 + 14 * 4096
    assert records["libxc", "X86_PV_VCPU_BASIC"] == {
        "layer": "libxc", "type": 4, "name": "X86_PV_VCPU_BASIC", "count": 2, "bytes": 2 * 5176,
    }  # fmt: skip
    assert records["libxl", "END"]["count"] == 1


def test_quick(info):
    assert info(Pv().file(), quick=True)["pages"]["zero"] is None


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (Hvm(emulator=None).file(config={"c_info": {"type": "pvh"}}), "pvh"),
        (Hvm().file(config={"c_info": {"type": "hvm"}}), "hvm"),
        (Hvm().file(config={"c_info": 3}), "hvm"),
        (Hvm(emulator=None).file(config=[1]), "hvm or pvh"),
        (Hvm().stream(), "hvm or pvh"),
        (Legacy(guest="hvm").xend_file(), "hvm"),
        (Legacy().xend_file(), "pv"),
    ],
)
def test_types_of_guests(info, content, kind):
    assert info(content)["guest"]["type"] == kind


def test_an_hvm_guest_has_the_pages_that_are_there(info):
    assert info(Hvm().file())["guest"]["pages"] == 13


def test_legacy_streams(info):
    facts = info(Legacy(word=4, width=4).xend_file())
    assert facts["layers"] == ["xend", "legacy stream of 32-bit tools"]
    assert facts["guest"]["bits"] == 32
    assert facts["saved_by_xen"] is None


@pytest.mark.parametrize("quick", [False, True])
def test_pages_in_holes(tmp_path, quick):
    path = tmp_path / "sparse"
    memory = [Page(0, pfn, savefiles.page(pfn) if pfn < 4 else savefiles.ZERO) for pfn in range(99)]
    content = Hvm(memory=memory, batch=99).stream()
    start = content.index(savefiles.page(1))
    with path.open("w+b") as file:
        file.write(content[: start + 3 * 4096])
        file.seek(95 * 4096, 1)
        file.write(content[start + 98 * 4096 :])
        file.flush()
        file.seek(0)
        image = Image(file.fileno(), "sparse")
        found = summary.summarise(image, quick=quick)
        facts = summary.facts(found, image, quick=quick)
    assert facts["pages"]["in_holes"] in range(90, 96)  # whole blocks, at any alignment
    assert found.zero == (facts["pages"]["in_holes"] if quick else 95)


def test_dense_and_sparse_files(info):
    static = savefiles.STATIC_DATA_END
    dense = Hvm(
        parts={"static": static + savefiles.record(0x7F58485A, b"\1" + bytes(7))},
        memory=[Page(savefiles.XALLOC, 3), Page(0, 4)],
    )
    assert info(dense.file())["form"] == "dense"
    assert info(dense.file())["pages"]["zero"] == 2
    sparse = Hvm(parts={"static": static + savefiles.record(0xFFFFFF01, bytes(8))})
    assert info(sparse.file())["form"] == "sparse"
