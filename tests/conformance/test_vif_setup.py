"""vif-setup: lines 22 and 23 of the checklist; vscsi and qemu-ifup beside it."""

from __future__ import annotations

import pytest
from harness.lines import F_CARD, K_CARD
from harness.outcomes import assert_refused

PORT_MAC = "fe:ff:ff:ff:ff:ff"

RECORDER = """#!/bin/sh
printf '%s\\0' "$@" >"{path}/words"
cat /proc/self/environ >"{path}/environment"
"""


@pytest.fixture
def program(tmp_path):
    """Make a script of somebody else's, which notes how it was run."""

    def make(text="", name="my-vif"):
        path = tmp_path / name
        path.write_text(RECORDER.format(path=tmp_path) + text)
        path.chmod(0o755)
        return path

    return make


def words(folder):
    return (folder / "words").read_text().split("\0")[:-1]


def setup(runner, backend, *arguments, script, **variables):
    known = {"vif": backend.link, "script": script, **variables}
    return runner.run(backend, *arguments, script="vif-setup", variables=known)


@K_CARD
def test_vif_setup_dispatch(card_runner, net, card, program, tmp_path):
    """22: with script set that program receives the arguments, else vif-bridge runs."""
    backend = card()
    made = program()
    result = setup(card_runner, backend, "online", "type_if=vif", script=str(made))
    assert result.status == 0
    assert words(tmp_path) == ["online", "type_if=vif"]
    assert not backend.read("hotplug-status")

    assert setup(card_runner, backend, "online", "type_if=vif", script=None).status == 0
    assert backend.read("hotplug-status") == b"connected"
    assert net.links()[backend.link]["master"] == "xenbr0"
    assert setup(card_runner, backend, "offline", "type_if=vif", script="").status == 0
    assert "master" not in net.links()[backend.link]


@K_CARD
def test_vif_setup_words_behind_the_path(card_runner, net, card, program, tmp_path):
    """22: xend's script carries parameters, which come first."""
    backend = card()
    made = program()
    result = setup(card_runner, backend, "online", script=f"{made} bridge=xenbr7 netdev=eth1")
    assert result.status == 0
    assert words(tmp_path) == ["bridge=xenbr7", "netdev=eth1", "online"]

    ours = card_runner.script("vif-bridge")
    net.add_bridge("xenbr7")
    backend.drop("bridge")
    assert setup(card_runner, backend, "online", script=f"{ours} bridge=xenbr7").status == 0
    assert net.links()[backend.link]["master"] == "xenbr7"
    net.delete("xenbr7")


@F_CARD
def test_vif_setup_for_a_script_of_ours(card_runner, net, card):
    """22: a script that we stand in for needs no process, wherever the toolstack looks for it."""
    backend = card()
    script = card_runner.place.scripts / "vif-bridge"
    script.write_text("#!/bin/sh\nexit 9\n")
    assert setup(card_runner, backend, "online", script=str(script)).status == 0
    assert backend.read("hotplug-status") == b"connected"


@F_CARD
def test_vif_setup_keeps_argument_boundaries(card_runner, card, program, tmp_path):
    """23: an argument with a blank arrives as one argument (D28)."""
    backend = card()
    made = program(name="my own vif")
    given = ["online", "ip=10.0.0.1 10.0.0.2", "*", "", "x='y'"]
    assert setup(card_runner, backend, *given, script=str(made)).status == 0
    assert words(tmp_path) == given
    pairs = (tmp_path / "environment").read_bytes().split(b"\0")
    assert f"XENBUS_PATH={backend.relative}".encode() in pairs
    assert f"vif={backend.link}".encode() in pairs
    assert b"LANG=POSIX" in pairs


@K_CARD
def test_vif_setup_relays(card_runner, card, program):
    """22: exit status, what was said, and the text that the script left."""
    backend = card()
    text = 'xenstore-write "$XENBUS_PATH/hotplug-error" "its own words"\necho oh >&2\nexit 7\n'
    result = setup(card_runner, backend, "online", script=str(program(text)))
    assert (result.status, result.stderr) == (7, b"oh\n")
    assert backend.read("hotplug-error") == b"its own words"


@F_CARD
def test_vif_setup_failure_has_text(card_runner, card, program):
    """22: hotplug-error if the program left none (D05)."""
    backend = card()
    backend.write("hotplug-error", "an old one")
    made = program("echo no bridge today >&2\nexit 3\n")
    result = setup(card_runner, backend, "online", script=str(made))
    assert (result.status, result.stderr) == (3, b"no bridge today\n")
    assert backend.read("hotplug-status") == b"error"
    said = backend.read("hotplug-error").decode()
    assert said == f"{made} online failed: no bridge today (exit status 3)"


@F_CARD
@pytest.mark.parametrize(("script", "text"), [("/none/such", "/none/such"), ("vif", "full path")])
def test_vif_setup_without_program(card_runner, card, script, text):
    """22: a script that is not there is named."""
    backend = card()
    assert_refused(backend, setup(card_runner, backend, "online", script=script), text)


@F_CARD
def test_vif_setup_program_may_call_ours(card_runner, net, card, program):
    """22: a program that ends in one of our scripts for the same card waits for nobody."""
    backend = card()
    made = program(f'exec {card_runner.script("vif-bridge")} "$@"\n')
    assert setup(card_runner, backend, "online", script=str(made)).status == 0
    assert backend.read("hotplug-status") == b"connected"
    assert net.links()[backend.link]["master"] == "xenbr0"


@F_CARD
def test_vscsi(card_runner, guest):
    """2.13: add is told to be connected, everything else is nothing (D50)."""
    backend = guest().add("vscsi", 0, {"state": 2})
    before = backend.tree()
    for words_ in (("remove",), ("online",), ("bogus",), ()):
        assert card_runner.run(backend, *words_, script="vscsi").status == 0
    assert backend.tree() == before
    backend.write("hotplug-error", "an old one")
    assert card_runner.run(backend, "add", script="vscsi").status == 0
    assert backend.tree() == {**before, "hotplug-status": b"connected"}
    backend.delete()
    result = card_runner.run(backend, "add", script="vscsi")
    assert result.status == 1
    assert not backend.exists


@pytest.fixture
def tap(net):
    net.add_tap("tap0")
    yield "tap0"
    net.delete("tap0")


@K_CARD
def test_qemu_ifup(card_runner, net, tap):
    """2.13: MAC, up, port of the bridge."""
    assert card_runner.run(None, tap, "xenbr0", script="qemu-ifup").status == 0
    found = net.links()[tap]
    assert (found["master"], found["address"]) == ("xenbr0", PORT_MAC)
    assert "UP" in found["flags"]


@K_CARD
@pytest.mark.parametrize("given", [("tap0", "nobridge"), ("notap", "xenbr0"), ("tap0",), ()])
def test_qemu_ifup_fails(card_runner, tap, given):
    """2.13: the exit status says that it failed."""
    result = card_runner.run(None, *given, script="qemu-ifup")
    assert result.status == 1
    if not card_runner.is_stock:
        said = result.stderr.decode()
        assert said.count("\n") == 1
        missing = next((name for name in given if name not in ("tap0", "xenbr0")), "TAP BRIDGE")
        assert missing in said
