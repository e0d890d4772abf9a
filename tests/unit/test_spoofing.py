"""A vif's keys and the settings, as what it may send."""

from __future__ import annotations

import pytest

from hotplug.config import Config
from hotplug.errors import HotplugError, MissingKeyError
from hotplug.handlers.spoofing import MAX_ADDRESSES, addresses, allowance, alone
from hotplug.network import Allowance

BACKEND = "backend/vif/5/0"
MAC = "00:16:3e:01:02:03"
AUTO, ALWAYS, NEVER = (Config(antispoof=word) for word in ("auto", "always", "never"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("10.0.0.2", ("10.0.0.2",)),
        ("10.0.0.2 10.0.0.3", ("10.0.0.2", "10.0.0.3")),
        ("10.0.0.2/24 10.0.0.9/255.255.255.0", ("10.0.0.0/24",)),
        ("10.0.0.2/32 10.0.0.2", ("10.0.0.2",)),
        ("2001:DB8::0:2", ("2001:db8::2",)),
        ("2001:db8::2/64 10.0.0.2", ("2001:db8::/64", "10.0.0.2")),
        ("0.0.0.0/0", ("0.0.0.0/0",)),
    ],
)
def test_words(text, expected):
    assert addresses(BACKEND, text.split()) == expected


@pytest.mark.parametrize(
    "word",
    [
        "web1",
        "web1.example.org",
        "10.0.0",
        "10.0.0.256",
        "10.0.0.0/33",
        "!10.0.0.2",
        "fe80::1%eth0",
    ],
)
def test_bad_words_are_named(word):
    with pytest.raises(HotplugError) as failure:
        addresses(BACKEND, ["10.0.0.2", word])
    text = str(failure.value)
    assert text.startswith(f"{BACKEND}/ip: {word!r} is no IPv4 or IPv6 address")
    assert "names of hosts are not looked up" in text


def test_too_many():
    words = [f"10.0.{n // 256}.{n % 256}" for n in range(MAX_ADDRESSES + 1)]
    assert len(addresses(BACKEND, words[:-1])) == MAX_ADDRESSES
    with pytest.raises(HotplugError, match="has 257 addresses, and a vif may have 256"):
        addresses(BACKEND, words)


@pytest.mark.parametrize(
    ("config", "words", "expected"),
    [
        (AUTO, (), None),
        (AUTO, ("10.0.0.2",), Allowance(MAC, ("10.0.0.2",))),
        (ALWAYS, (), Allowance(MAC)),
        (ALWAYS, ("10.0.0.2",), Allowance(MAC, ("10.0.0.2",))),
        (NEVER, (), None),
        (NEVER, ("10.0.0.2",), None),
    ],
)
def test_settings(config, words, expected):
    assert allowance(config, BACKEND, MAC, words) == expected


def test_routed():
    assert allowance(AUTO, BACKEND, MAC, ["10.0.0.2"], routed=True) == Allowance(
        MAC, ("10.0.0.2",), routed=True
    )


def test_the_mac_is_lowercase():
    assert allowance(ALWAYS, BACKEND, "00:16:3E:01:02:AF", ()) == Allowance("00:16:3e:01:02:af")


def test_a_mac_must_be_there():
    with pytest.raises(MissingKeyError, match=f"{BACKEND}/mac: is not set"):
        allowance(AUTO, BACKEND, "", ["10.0.0.2"])


@pytest.mark.parametrize("mac", ["00:16:3e:01:02", "00-16-3e-01-02-03", f"{MAC} ", f"{MAC}\n", "x"])
def test_a_mac_must_be_one(mac):
    with pytest.raises(HotplugError, match="is no MAC, such as"):
        allowance(AUTO, BACKEND, mac, ["10.0.0.2"])


def test_keys_that_are_not_needed_are_not_looked_at():
    assert allowance(AUTO, BACKEND, "nonsense", ()) is None
    assert allowance(NEVER, BACKEND, "", ("10.0.0.2",)) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("10.0.0.2 10.0.0.0/8 2001:DB8::0:2", ["10.0.0.2", "2001:db8::2"]),
        ("10.0.0.2/32 10.0.0.9/24 10.0.0.300 web1 fe80::1%eth0", ["10.0.0.2"]),
    ],
)
def test_what_a_guest_has_alone(text, expected):
    """The connections of a network are others' too; a name is nobody's address here."""
    assert alone(text.split()) == expected
