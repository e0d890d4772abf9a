"""Scripts that run in a driver domain: line 117 of the checklist."""

from __future__ import annotations

from harness.lines import F_CARD, F_DRIVER_CARD
from harness.outcomes import assert_refused


@F_DRIVER_CARD
def test_driver_domain_tap(driver_card_runner, guest):
    """117: tap run without such an interface in a driver domain: NOP."""
    backend = guest().card(backend_domid=driver_card_runner.domid, keys={"type": "vif_ioemu"})
    before = backend.tree()
    for action in ("add", "remove"):
        assert driver_card_runner.tap(backend, action).status == 0
    assert backend.tree() == before


@F_DRIVER_CARD
def test_a_tap_that_is_there(driver_card_runner, net, guest):
    """A driver domain that runs device models after all."""
    backend = guest().card(backend_domid=driver_card_runner.domid, keys={"vifname": "mine"})
    net.add_tap(f"{backend.link}-emu")
    for _ in range(2):  # it has its new name the second time
        assert driver_card_runner.tap(backend, "add").status == 0
        assert net.links()["mine-emu"]["master"] == "xenbr0"
    assert driver_card_runner.tap(backend, "remove").status == 0
    net.delete("mine-emu")


@F_CARD
def test_a_missing_tap_in_dom0(card_runner, card):
    """There it is a failure."""
    backend = card(link=False)
    assert_refused(backend, card_runner.tap(backend, "add"), f"{backend.link}-emu")
