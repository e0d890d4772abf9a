"""vif-route: scenarios, what ours must leave behind, and where stock does something else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from differential import routing
from differential.cards import Card, Readdress, Run, Scenario, Write
from hypothesis import strategies as st

if TYPE_CHECKING:
    from differential.cards import Seen, Step
    from differential.routing import Rule

SCRIPT = "vif-route"
METRICS = {False: 2, True: 1}
IPS = ("10.0.0.2", "10.0.0.3 10.1.0.0/16", "10.0.0.2/32", "2001:db8::2", "10.0.0.4 2001:db8:1::/64")
ODD_IPS = ("10.0.0.5/24", "10.0.0.2 10.0.0.2", "default", "10.0.0.300", "guest", "")

ips = st.sampled_from([None, *IPS, *IPS, *ODD_IPS])
netdevs = st.sampled_from(["", "", "eth0", "eth1", "eth2", "eth9"]).map(
    lambda name: (("netdev", name),) if name else ()
)
cards = routing.cards(
    ip=ips, gatewaydev=st.sampled_from([None, None, None, "eth1"]), parameters=netdevs
)
scenarios = routing.scenarios(
    cards,
    st.builds(Write, card=st.integers(0, 1), ip=st.sampled_from([*IPS, "10.0.0.6"])),
    st.builds(Readdress, st.sampled_from(["", "192.0.2.7", "192.0.2.1"])),
)


def gateway(step: Step) -> str:
    return dict(step.card.parameters).get("netdev") or step.card.gatewaydev or "eth0"


def address_of(step: Step, name: str) -> str:
    """Of an outer link; that of eth0 may have been changed."""
    return step.before.host["outside"].get(name, "")


def refusal(step: Step) -> tuple[str, ...]:
    """What must be in the text, () if it must succeed."""
    for word in routing.words(step):
        if routing.network_of(word) is None:
            return (f"{step.base[2:]}/ip", word)
    if routing.words(step) and not routing.mac(step):
        return (f"{step.base[2:]}/mac",)
    if not address_of(step, gateway(step)):
        return (gateway(step), "gatewaydev")
    return routing.may_not_be_named(step)


def demanded(step: Step) -> Seen:
    return (arrived if step.arrives else departed)(step)


def arrived(step: Step) -> Seen:
    mentioned = refusal(step)
    if mentioned:
        return routing.refused(step, mentioned)
    source = address_of(step, gateway(step))
    networks = [routing.network_of(word) for word in routing.words(step)]
    alone = [str(one.network_address) for one in networks if one.num_addresses == 1]
    proxied = {(gateway(step), one) for one in alone if ":" in one and not step.is_tap}
    routes = {
        (
            str(one.network_address if one.num_addresses == 1 else one),
            METRICS[step.is_tap],
            source if one.version == 4 else "",
        )
        for one in networks
    }
    changes = {"up": True, "addresses": (f"{source}/32",), "proxy": True}
    return step.before._replace(
        links=routing.with_link(step, routes=tuple(sorted(routes)), **changes),
        store=routing.connected(step),
        extras=routing.held(step, alone or [""] * len(networks), frozenset(proxied)),
    )


def departed(step: Step) -> Seen:
    return step.before._replace(
        links=routing.taken_down(step),
        host=routing.host_without_rules(step),
        extras=routing.let_go(step),
    )


# What stock did.


def has_no_gateway(step: Step, seen: Seen) -> bool:
    netdev = dict(step.card.parameters).get("netdev") or "eth0"
    return routing.is_generic(step, seen) and not address_of(step, netdev)


def failed_over_a_route(step: Step, seen: Seen) -> bool:
    """It was there: of a former run, of another card, or as it is asked for twice."""
    wanted = [
        (str(one.network_address if one.num_addresses == 1 else one), METRICS[step.is_tap])
        for one in map(routing.network_of, routing.words(step))
        if one is not None
    ]
    there = {route[:2] for link in step.before.links.values() for route in link.routes}
    is_there = len(set(wanted)) < len(wanted) or not there.isdisjoint(wanted)
    return routing.is_generic(step, seen) and step.arrives and is_there


def failed_over_ipv6(step: Step, seen: Seen) -> bool:
    return step.arrives and routing.is_generic(step, seen) and ":" in "".join(routing.words(step))


def took_another_gateway(step: Step, seen: Seen) -> bool:
    """The usual one, or failed because that has no address."""
    own = step.card.gatewaydev and not dict(step.card.parameters).get("netdev")
    return step.arrives and bool(own) and (not seen.status or has_no_gateway(step, seen))


def left_it_up(step: Step, seen: Seen) -> bool:
    """Without ifupdown there is no ifdown, and with it none that knows the link."""
    return not step.arrives and not seen.status and seen.store == step.before.store


RULES: dict[str, Rule] = {
    "D44 offline": routing.by(
        demanded, lambda step, seen: not step.arrives and has_no_gateway(step, seen)
    ),
    "D41": routing.by(demanded, routing.renamed_before),
    "D04": routing.by(demanded, routing.failed_as_ours(refusal)),
    "D44 online": routing.by(demanded, failed_over_a_route),
    "IPv6": routing.by(demanded, failed_over_ipv6),
    "names in ip": routing.by(demanded, routing.succeeded_in_spite(refusal, of="/ip")),
    "no MAC": routing.by(demanded, routing.succeeded_in_spite(refusal, of="/mac")),
    "gatewaydev": routing.by(demanded, took_another_gateway),
    "another ip": routing.by(demanded, routing.kept_former_routes(demanded)),
    "D21": routing.error_cleared,
    "held to its addresses": routing.by(demanded, routing.did_not_hold(demanded)),
    "D37": routing.by(demanded, routing.left_rules(demanded)),
    "never down": routing.by(demanded, left_it_up),
}

TWICE, LEAVE = (Run(0, "online"), Run(0, "online")), (Run(0, "online"), Run(0, "offline"))
EXAMPLES = {
    "D44 offline": Scenario(
        (Card(ip="10.0.0.2"),), (Run(0, "online"), Readdress(""), Run(0, "offline"))
    ),
    "D41": Scenario((Card(vifname="web"),), TWICE),
    "D04": Scenario((Card(parameters=(("netdev", "eth2"),)),), TWICE[:1]),
    "D44 online": Scenario((Card(ip="10.0.0.2"),), TWICE),
    "IPv6": Scenario((Card(ip="10.0.0.2 2001:db8::2"),), LEAVE),
    "names in ip": Scenario((Card(ip="default"),), TWICE[:1]),
    "no MAC": Scenario((Card(ip="10.0.0.2", mac=None),), TWICE[:1]),
    "gatewaydev": Scenario((Card(ip="10.0.0.2", gatewaydev="eth1"),), TWICE[:1]),
    "another ip": Scenario(
        (Card(ip="10.0.0.2"),), (Run(0, "online"), Write(0, "10.0.0.3"), Run(0, "online"))
    ),
    "D21": Scenario((Card(error="an earlier failure"),), TWICE[:1]),
    "held to its addresses": Scenario((Card(ip="10.0.0.2 10.1.0.0/16"),), TWICE[:1]),
    "D37": Scenario((Card(accepted=True),), LEAVE[1:]),
    "never down": Scenario((Card(ip="10.0.0.2", accepted=True),), LEAVE),
}
