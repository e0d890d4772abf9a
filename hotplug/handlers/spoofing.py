"""Which addresses a vif may use: its keys and the settings in, an Allowance or nothing out.

A vif's ``ip`` is a row of words, each an IPv4 or IPv6 address or network. The stock scripts gave
them to iptables, which would also look up names; but whose address a name is, somebody else
decides, and later another than now. So names are refused, with a text.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

from hotplug.errors import HotplugError, MissingKeyError
from hotplug.network import Allowance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hotplug.config import Config

MAX_ADDRESSES = 256  # of a vif; the kernel's filter of it must fit into one message
MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")


def addresses(backend: str, words: Sequence[str]) -> tuple[str, ...]:
    """The words of ``ip``, each as the kernel's tools write it; ``backend`` is for the errors."""
    import ipaddress  # noqa: PLC0415 - takes 5 ms, and most vifs have none

    if len(words) > MAX_ADDRESSES:
        raise HotplugError(
            f"{backend}/ip: has {len(words)} addresses, and a vif may have {MAX_ADDRESSES};"
            " write networks, as in 10.0.0.0/24"
        )
    found = []
    for word in words:
        try:
            network = ipaddress.ip_network(word, strict=False)
        except ValueError:
            raise not_an_address(backend, word) from None
        if "%" in word:  # an interface of this host's, that a guest cannot mean
            raise not_an_address(backend, word)
        single = network.num_addresses == 1
        found.append(str(network.network_address if single else network))
    return tuple(dict.fromkeys(found))


def alone(words: Sequence[str]) -> list[str]:
    """Those of the words of ``ip`` that are one address; what is no address counts for nothing."""
    if not words:
        return []
    import ipaddress  # noqa: PLC0415 - as above

    found = []
    for word in words:
        with contextlib.suppress(ValueError):
            network = ipaddress.ip_network(word, strict=False)
            if network.num_addresses == 1 and "%" not in word:
                found.append(str(network.network_address))
    return found


def not_an_address(backend: str, word: str) -> HotplugError:
    return HotplugError(
        f"{backend}/ip: {word!r} is no IPv4 or IPv6 address, nor a network such as 10.0.0.0/24;"
        " names of hosts are not looked up"
    )


def allowance(
    config: Config, backend: str, mac: str, words: Sequence[str], *, routed: bool = False
) -> Allowance | None:
    """What a guest may send, None if it may send anything; ``words`` are from addresses()."""
    if config.antispoof == "never" or (config.antispoof == "auto" and not words):
        return None
    if not mac:
        raise MissingKeyError(
            f"{backend}/mac: is not set, so that the guest cannot be kept from forging addresses"
        )
    if not MAC.fullmatch(mac.lower()):
        raise HotplugError(f"{backend}/mac: {mac!r} is no MAC, such as 00:16:3e:01:02:03")
    return Allowance(mac.lower(), tuple(words), routed=routed)
