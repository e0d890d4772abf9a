"""vif-nat: scenarios, what ours must leave behind, and where stock does something else."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from differential import dhcp, routing
from differential.cards import Card, Run, Scenario, Write
from differential.dhcp import Lease, Server
from hypothesis import strategies as st

if TYPE_CHECKING:
    from differential.cards import Seen, Step
    from differential.routing import Rule

SCRIPT = "vif-nat"
TO_ROUTER = 127
NO_ROUTER = "128"  # the highest last number of a guest; in the text
IPS = ("192.168.7.9", "192.168.7.9/24", "192.168.7.10")
ODD_IPS = (
    "192.168.7.200",
    "192.168.7.9/99",
    "192.168.7.9 192.168.7.10",
    "2001:db8::2",
    "guest",
    "",
)
OTHERS = (
    "host dom10 { hardware ethernet 00:16:3e:00:00:0a; fixed-address 10.0.10.1; }\n"
    "host dom1-3 { hardware ethernet 00:16:3e:00:00:0b; fixed-address 10.0.1.3; }\n"
)
OWN = "host dom1 { hardware ethernet 00:16:3e:00:00:0c; fixed-address 10.0.1.9; }\n"
SETTINGS = (
    'INTERFACES="eth0 "\n',
    'INTERFACES=""\n',
    'DHCPDARGS="eth0 vif1.0 "\nDHCPD_INTERFACE="vif2.0 "\n',
    'INTERFACES="eth0"\n',
    "OPTIONS=-q\n",
)

ips = st.sampled_from([None, None, *IPS, *IPS, *ODD_IPS])
dhcps = st.sampled_from(["", "", "yes", "yes", "no"]).map(
    lambda wish: (("dhcp", wish),) if wish else ()
)
handles = st.sampled_from(["0", "0", "0", "2", "200", None])
cards = routing.cards(ip=ips, handle=handles, parameters=dhcps)
usual = Server().configuration
servers = st.builds(
    Server,
    configuration=st.sampled_from([usual, usual, usual + OTHERS, OWN + usual, OWN, ""]),
    settings=st.sampled_from([SETTINGS[0], *SETTINGS]),
    where=st.sampled_from([dhcp.STOCKS_SETTINGS] * 4 + [dhcp.DEBIANS_SETTINGS, ""]),
    by_default=st.booleans(),
)
scenarios = routing.scenarios(
    cards,
    st.builds(Write, card=st.integers(0, 1), ip=st.sampled_from(IPS)),
    server=st.one_of(servers, servers, st.none()),
)


def handle(step: Step) -> int:
    return int(step.card.handle or 0)


def hostname(step: Step) -> str:
    return f"dom{step.domid}" + (f"-{handle(step) + 1}" if handle(step) else "")


def address(step: Step) -> str:
    """Of the guest; "" if the key has no single one."""
    words = routing.words(step)
    if not words:
        return f"10.0.{step.domid}.{handle(step) + 1}"
    try:
        (word,) = words
        return str(ipaddress.IPv4Interface(word).ip)
    except ValueError:
        return ""


def router(step: Step) -> str:
    head, _, last = address(step).rpartition(".")
    return f"{head}.{int(last) + TO_ROUTER}"


def is_told(step: Step) -> bool:
    """Whether the server is to be."""
    present = step.server is not None and step.server.by_default
    wish = dict(step.card.parameters).get("dhcp") or ("yes" if present else "no")
    return wish != "no"


def is_there(step: Step) -> bool:
    return step.server is not None and bool(step.server.where)


def refusal(step: Step) -> tuple[str, ...]:
    """What must be in the text, () if it must succeed."""
    if not address(step):
        return (f"{step.base[2:]}/ip", "one IPv4 address")
    if int(router(step).rpartition(".")[2]) > 255:
        return (address(step), NO_ROUTER)
    return routing.may_not_be_named(step) or (() if step.is_tap else unready(step))


def unready(step: Step) -> tuple[str, ...]:
    """What is missing for holding the guest to its address, or for DHCP."""
    if is_told(step) and not is_there(step) and (routing.mac(step) or not routing.words(step)):
        return ("DHCP server", "dhcp=no")
    if not routing.mac(step) and (routing.words(step) or is_told(step)):
        return (f"{step.base[2:]}/mac",)
    return ()


def demanded(step: Step) -> Seen:
    return (arrived if step.arrives else departed)(step)


def arrived(step: Step) -> Seen:
    mentioned = refusal(step)
    if mentioned:
        return routing.refused(step, mentioned)
    if step.is_tap:
        return step.before._replace(links=routing.with_link(step))
    host = step.before.host
    if is_told(step):
        mac = routing.mac(step)
        lease = Lease(hostname(step), mac, address(step), router(step), step.name)
        host = dhcp.told(host, lease)
    routes = ((address(step), 0, router(step)),)
    changes = {"up": True, "addresses": (f"{router(step)}/32",), "proxy": True}
    return step.before._replace(
        links=routing.with_link(step, routes=routes, **changes),
        store=routing.connected(step),
        host=host,
        extras=routing.held(step, [address(step)] * len(routing.words(step)), frozenset()),
    )


def departed(step: Step) -> Seen:
    if step.is_tap:
        return step.before
    host = routing.host_without_rules(step)
    known = step.known.get(step.of)
    if known is not None and is_told(known):
        host = dhcp.forgotten(host, hostname(known), known.name)
    elif is_told(step) and is_there(step):
        link = "" if routing.is_anothers(step) else step.name
        host = dhcp.forgotten(host, hostname(step), link)
    return step.before._replace(
        links=routing.taken_down(step), host=host, extras=routing.let_go(step)
    )


# What stock did.


def has_no_number(step: Step, seen: Seen) -> bool:
    return routing.is_generic(step, seen) and step.card.handle is None


def knows_no_server(step: Step, seen: Seen) -> bool:
    stocks = is_there(step) and step.server.where == dhcp.STOCKS_SETTINGS
    return routing.is_silent(step, seen) and is_told(step) and not stocks


def lost_the_last_line(step: Step, seen: Seen) -> bool:
    """grep -v says 1 if it prints nothing, and ends the script without a word."""
    lines = str(step.before.host.get(dhcp.CONFIGURATION, "")).splitlines()
    is_last = all(f"host {hostname(step)}" in line for line in lines)
    return routing.is_silent(step, seen) and is_told(step) and is_last


def succeeded(step: Step, seen: Seen) -> bool:
    return step.arrives and not seen.status


def did_nothing(step: Step, seen: Seen) -> bool:
    """A route over the link, and it was set up: by a name that only looks alike, or half."""
    return succeeded(step, seen) and not step.is_tap and seen.store == step.before.store


def failed_over_a_route(step: Step, seen: Seen) -> bool:
    """It was there, over another card's link; or the address was."""
    text = routing.text_of(step, seen)
    return (
        step.arrives
        and text.startswith((b"ip route add ", b"ip addr add "))
        and (text.endswith(b" failed"))
    )


def left_addresses(step: Step, seen: Seen) -> bool:
    """Those of before, beside the one that it added."""
    wanted = demanded(step).links.get(step.name)
    link = seen.links.get(step.name)
    more = link and wanted and set(link.addresses) > set(wanted.addresses)
    return succeeded(step, seen) and bool(more)


def differs_only_in_files(step: Step, seen: Seen) -> bool:
    """Entries that begin alike are gone, or words of its list run together."""
    wanted = demanded(step)
    same = seen.links == wanted.links and seen.store == wanted.store
    ran = str(seen.host.get(dhcp.RESTARTS, "")) == str(wanted.host.get(dhcp.RESTARTS, ""))
    return not seen.status and is_told(step) and same and ran and seen.host != wanted.host


def renamed_in_spite(step: Step, seen: Seen) -> bool:
    """A tap, of a card that can have no router."""
    return succeeded(step, seen) and step.is_tap and refusal(step)[1:] == (NO_ROUTER,)


def restarted_for_nothing(step: Step, seen: Seen) -> bool:
    """Though its files are as before."""
    now, before = (host.get(dhcp.RESTARTS, "") for host in (seen.host, step.before.host))
    same = {**seen.host, dhcp.RESTARTS: before} == {**step.before.host, dhcp.RESTARTS: before}
    return not step.arrives and not seen.status and now != before and same


def left_something(step: Step, seen: Seen) -> bool:
    """The address stays, and what it does not find by the names of now."""
    return not step.arrives and not seen.status and seen.store == step.before.store


RULES: dict[str, Rule] = {
    "D41": routing.by(demanded, routing.renamed_before),
    "D04": routing.by(demanded, routing.failed_as_ours(refusal)),
    "no handle": routing.by(demanded, has_no_number),
    "D43 files": routing.by(demanded, knows_no_server),
    "D05": routing.by(demanded, lost_the_last_line),
    "D42": routing.by(demanded, did_nothing),
    "D44": routing.by(demanded, failed_over_a_route),
    "names in ip": routing.by(demanded, routing.succeeded_in_spite(refusal, of="/ip")),
    "no MAC": routing.by(demanded, routing.succeeded_in_spite(refusal, of="/mac")),
    "no router": routing.by(demanded, renamed_in_spite),
    "only its address": routing.by(demanded, left_addresses),
    "D21": routing.error_cleared,
    "D43 entries": routing.by(demanded, differs_only_in_files),
    "held to its addresses": routing.by(demanded, routing.did_not_hold(demanded)),
    "D37": routing.by(demanded, routing.left_rules(demanded)),
    "needless restart": routing.by(demanded, restarted_for_nothing),
    "addresses stay": routing.by(demanded, left_something),
}

ONCE, TWICE = (Run(0, "online"),), (Run(0, "online"), Run(0, "online"))
YES = (("dhcp", "yes"),)
EXAMPLES = {
    "D41": Scenario((Card(vifname="web"),), TWICE),
    "D04": Scenario((Card(parameters=YES),), ONCE),
    "no handle": Scenario((Card(handle=None),), ONCE),
    "D43 files": Scenario((Card(parameters=YES),), ONCE, Server(where=dhcp.DEBIANS_SETTINGS)),
    "D05": Scenario((Card(parameters=YES),), ONCE, Server(configuration="")),
    "D42": Scenario((Card(address=True),), ONCE),
    "D44": Scenario((Card(ip=IPS[0]), Card(ip=IPS[0])), (Run(0, "online"), Run(1, "online"))),
    "names in ip": Scenario((Card(ip="192.168.7.9/99"),), ONCE),
    "no MAC": Scenario((Card(ip=IPS[0], mac=None),), ONCE),
    "no router": Scenario((Card(handle="200"),), (Run(0, "add"),)),
    "only its address": Scenario((Card(idle=True),), ONCE),
    "D21": Scenario((Card(error="an earlier failure"),), ONCE),
    "D43 entries": Scenario((Card(parameters=YES),), ONCE, Server(configuration=usual + OTHERS)),
    "held to its addresses": Scenario((Card(ip=IPS[1]),), ONCE),
    "D37": Scenario((Card(accepted=True),), (Run(0, "offline"),)),
    "needless restart": Scenario((Card(parameters=YES),), (Run(0, "offline"),), Server()),
    "addresses stay": Scenario((Card(accepted=True),), (*ONCE, Run(0, "offline"))),
}
