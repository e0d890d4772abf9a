"""vif-nat: lines 120 and 121 of the checklist, with real links and a DHCP server's files."""

from __future__ import annotations

import shutil

import pytest
from harness.lines import F_CARD, K_CARD
from harness.netns import netns
from harness.outcomes import assert_refused

SCRIPT = "/etc/xen/scripts/vif-nat"
CONFIGURATION = """# as the administrator has it
subnet 10.0.0.0 netmask 255.0.0.0 { }
host dom7 { hardware ethernet 00:16:3e:00:00:07; fixed-address 10.9.9.9; }
"""
SERVICE = '#!/bin/sh\necho "$0 $*" >>/etc/restarts\nexit 1\n'  # as it does with nothing to serve


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """In the place of the one in conftest.py: with an /etc of its own."""
    etc = tmp_path_factory.mktemp("nat") / "etc"
    shutil.copytree("/etc", etc, symlinks=True, ignore_dangling_symlinks=True)
    for name in ("dhcp/dhcpd.conf", "dhcpd.conf", "default/isc-dhcp-server"):
        (etc / name).unlink(missing_ok=True)
    with netns(etc) as made:
        yield made


@pytest.fixture
def server(net):
    """A DHCP server; the folder that runs find as /etc."""
    files = {
        "dhcp/dhcpd.conf": CONFIGURATION,
        "default/dhcp-server": 'INTERFACES="eth0 "\n',
        "init.d/isc-dhcp-server": SERVICE,
    }
    for name, content in files.items():
        path = net.etc / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    (net.etc / "init.d/isc-dhcp-server").chmod(0o755)
    yield net.etc
    for name in [*files, "restarts", "default/isc-dhcp-server", "dhcpd.conf"]:
        (net.etc / name).unlink(missing_ok=True)


@pytest.fixture
def natted(card):
    """Make cards whose script is vif-nat."""

    def make(**keys):
        return card(script=SCRIPT, bridge=None, **keys)

    return make


@K_CARD
@pytest.mark.parametrize(
    ("keys", "address", "router"),
    [
        ({"frontend-id": 77, "handle": 0}, "10.0.77.1", "10.0.77.128"),
        ({"frontend-id": 77, "handle": 2}, "10.0.77.3", "10.0.77.130"),
        ({"frontend-id": 1000, "handle": 0}, "10.3.232.1", "10.3.232.128"),
        ({"ip": "192.168.7.9"}, "192.168.7.9", "192.168.7.136"),
        ({"ip": "192.168.7.9/24"}, "192.168.7.9", "192.168.7.136"),
    ],
)
def test_nat_addresses(card_runner, net, natted, keys, address, router):
    """120: domid 77, handle 0: guest 10.0.77.1, router 10.0.77.128; handle 2: .3 and .130."""
    backend = natted(**keys)
    assert card_runner.online(backend).status == 0
    assert backend.read("hotplug-status") == b"connected"
    assert net.routes_over(backend.link) == {address: (0, router)}
    assert f"{router}/32" in net.addresses(backend.link)
    assert "UP" in net.links()[backend.link]["flags"]
    assert net.setting(f"ipv4/conf/{backend.link}/proxy_arp") == "1"
    assert card_runner.offline(backend).status == 0
    assert "UP" not in net.links()[backend.link]["flags"]
    assert net.routes_over(backend.link) == {}


@F_CARD
def test_nat_already_up(card_runner, net, natted):
    """121: status connected is written (D42)."""
    backend = natted()
    assert card_runner.online(backend).status == 0
    before = net.routes_over(backend.link), net.addresses(backend.link)
    backend.write("hotplug-status", "")
    assert card_runner.online(backend).status == 0
    assert backend.read("hotplug-status") == b"connected"
    assert (net.routes_over(backend.link), net.addresses(backend.link)) == before


@F_CARD
def test_nat_longer_name_up(card_runner, net, natted):
    """121: a route over vif1.10 says nothing about vif1.1 (D42)."""
    backend = natted()
    net.add_vif(f"{backend.link}0", "longer")
    net.ip("link", "set", "dev", f"{backend.link}0", "up")
    net.ip("route", "add", "10.99.0.1", "dev", f"{backend.link}0")
    assert card_runner.online(backend).status == 0
    assert backend.read("hotplug-status") == b"connected"
    assert net.routes_over(backend.link)
    net.delete(f"{backend.link}0")


@F_CARD
@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"ip": "192.168.7.200"}, ["192.168.7.200", "128"]),
        ({"ip": "192.168.7.9 192.168.7.10"}, ["/ip", "one IPv4 address"]),
        ({"ip": "2001:db8::2"}, ["/ip", "one IPv4 address"]),
        ({"handle": 200}, ["10.", "128"]),
    ],
)
def test_nat_refused(card_runner, net, natted, keys, words):
    """120: an address that leaves none for the router."""
    backend = natted(**keys)
    assert_refused(backend, card_runner.online(backend), *words)
    assert "UP" not in net.links()[backend.link]["flags"]


@F_CARD
def test_nat_tap_is_renamed(card_runner, net, natted):
    """120: the tap beside it gets its name and nothing else; so does stock."""
    backend = natted(tap=True, vifname="g")
    assert card_runner.online(backend).status == 0
    for _ in range(2):
        assert card_runner.tap(backend, "add").status == 0
        assert net.addresses("g-emu") == []
    assert backend.read("hotplug-status") == b"connected"
    assert card_runner.tap(backend, "remove").status == 0


def entry(name, backend, guest, router):
    mac = backend.read("mac").decode()
    return (
        f"host {name} {{ hardware ethernet {mac}; fixed-address {guest};"
        f' option routers {router}; option host-name "{name}"; }}\n'
    )


@K_CARD
def test_nat_dhcp(card_runner, net, natted, server):
    """120: the DHCP server knows the guest while its card is there."""
    backend = natted(**{"frontend-id": 77, "handle": 2})
    yes = {"dhcp": "yes"}
    assert card_runner.online(backend, variables=yes).status == 0
    line = entry("dom77-3", backend, "10.0.77.3", "10.0.77.130")
    assert (server / "dhcp/dhcpd.conf").read_text() == CONFIGURATION + line
    settings = (server / "default/dhcp-server").read_text()
    assert settings == f'INTERFACES="eth0 {backend.link} "\n'
    assert card_runner.offline(backend, variables=yes).status == 0
    assert (server / "dhcp/dhcpd.conf").read_text() == CONFIGURATION
    assert (server / "default/dhcp-server").read_text() == 'INTERFACES="eth0 "\n'
    restarts = (server / "restarts").read_text()
    assert restarts == "/etc/init.d/isc-dhcp-server restart\n" * 2


@K_CARD
def test_nat_dhcp_by_default(card_runner, natted, server):
    """120: the server is told by default where /etc/dhcpd.conf is, and not if dhcp is no."""
    (server / "dhcpd.conf").touch()
    backend = natted()
    assert card_runner.online(backend, variables={"dhcp": "no"}).status == 0
    assert (server / "dhcp/dhcpd.conf").read_text() == CONFIGURATION
    other = natted()
    assert card_runner.online(other).status == 0
    assert f"host dom{other.domid} " in (server / "dhcp/dhcpd.conf").read_text()
    assert card_runner.offline(other).status == 0
    assert (server / "dhcp/dhcpd.conf").read_text() == CONFIGURATION


@F_CARD
def test_nat_dhcp_others_stay(card_runner, natted, server):
    """120: guests whose names begin alike keep their entries (D43)."""
    yes = {"dhcp": "yes"}
    cards = [natted(**{"frontend-id": domid, "handle": 0}) for domid in (1, 10, 100)]
    cards.append(natted(**{"frontend-id": 1, "handle": 1}))
    for backend in cards:
        assert card_runner.online(backend, variables=yes).status == 0
    full = (server / "dhcp/dhcpd.conf").read_text()
    assert full.count("host dom1") == 4
    assert card_runner.offline(cards[0], variables=yes).status == 0
    left = (server / "dhcp/dhcpd.conf").read_text()
    assert left == full.replace(entry("dom1", cards[0], "10.0.1.1", "10.0.1.128"), "")
    for backend in cards[1:]:
        assert card_runner.offline(backend, variables=yes).status == 0
    assert (server / "dhcp/dhcpd.conf").read_text() == CONFIGURATION


@F_CARD
def test_nat_dhcp_debian(card_runner, natted, server):
    """120: Debian's file of settings, its owner and mode; files that are links stay so (D43)."""
    (server / "default/dhcp-server").unlink()
    settings = server / "default/isc-dhcp-server"
    settings.write_text('INTERFACESv4=""\nINTERFACESv6=""\n')
    real = server / "dhcp/real.conf"
    (server / "dhcp/dhcpd.conf").rename(real)
    (server / "dhcp/dhcpd.conf").symlink_to("real.conf")
    shutil.chown(real, 4711, 4712)
    real.chmod(0o640)
    backend = natted()
    assert card_runner.online(backend, variables={"dhcp": "yes"}).status == 0
    assert settings.read_text() == f'INTERFACESv4="{backend.link} "\nINTERFACESv6=""\n'
    assert (server / "dhcp/dhcpd.conf").is_symlink()
    found = real.stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (4711, 4712, 0o640)
    assert f"host dom{backend.domid} " in real.read_text()
    # Without being told so again: it is in the journal.
    assert card_runner.offline(backend).status == 0
    assert real.read_text() == CONFIGURATION
    real.unlink()


@F_CARD
@pytest.mark.parametrize(
    "missing", ["dhcp/dhcpd.conf", "default/dhcp-server", "init.d/isc-dhcp-server"]
)
def test_nat_dhcp_missing(card_runner, net, natted, server, missing):
    """120: a server that is not there is named, and nothing is done."""
    (server / missing).unlink()
    backend = natted()
    result = card_runner.online(backend, variables={"dhcp": "yes"})
    assert_refused(backend, result, f"/etc/{missing}", "dhcp=no")
    assert "UP" not in net.links()[backend.link]["flags"]


@F_CARD
@pytest.mark.parametrize(
    ("mac", "words"), [(None, "/mac is missing"), ("x; } include", "no MAC address")]
)
def test_nat_dhcp_needs_mac(card_runner, natted, server, mac, words):
    """120: what would spoil the server's configuration does not get into it."""
    backend = natted(mac=mac)
    assert_refused(backend, card_runner.online(backend, variables={"dhcp": "yes"}), words)
    assert (server / "dhcp/dhcpd.conf").read_text() == CONFIGURATION


@K_CARD
@pytest.mark.parametrize(
    ("ip", "known"), [(None, "10.0.77.3/16"), ("192.168.7.9", "192.168.7.9"), ("10.0.0.2/8",) * 2]
)
def test_nat_hooks_see_the_address(card_runner, natted, hook, ip, known):
    """115: with its bits where it was made of the domain id, else as it was given."""
    backend = natted(**{"frontend-id": 77, "handle": 2, "ip": ip})
    seen = hook("seen", 'echo "$command $ip $vif_ip"')
    assert card_runner.online(backend).status == 0
    assert card_runner.offline(backend).status == 0
    words = f"{known} {known.partition('/')[0]}"
    assert seen() == [f"online {words}", f"offline {words}"]


@F_CARD
def test_nat_forgets_connections(card_runner, net, natted):
    """120: those of the guest that had the same address before, which nobody wrote down."""
    backend = natted(**{"frontend-id": 77})
    for source in ("10.0.77.1", "10.0.77.2"):
        words = ("-s", source, "-d", "192.0.2.9", "-p", "udp", "--sport", "1", "--dport", "2")
        net.run("conntrack", "-I", "-t", "600", *words)
    assert card_runner.online(backend).status == 0
    known = net.run("conntrack", "-L").stdout
    net.run("conntrack", "-F")
    assert "src=10.0.77.2 " in known
    assert "src=10.0.77.1 " not in known


@F_CARD
def test_nat_undone(card_runner, net, natted, server):
    """116: a hook that fails takes everything back, also from the DHCP server."""
    folder = card_runner.place.scripts / "vif-post.d"
    folder.mkdir(exist_ok=True)
    hook = folder / "fail.hook"
    hook.write_text('#!/bin/sh\necho "$vif_ip $router_ip $hostname $vifid" >&2\nexit 3\n')
    hook.chmod(0o755)
    try:
        backend = natted(**{"frontend-id": 77})
        result = card_runner.online(backend, variables={"dhcp": "yes"})
    finally:
        hook.unlink()
    assert_refused(backend, result, "fail.hook", "10.0.77.1 10.0.77.128 dom77 1")
    assert (server / "dhcp/dhcpd.conf").read_text() == CONFIGURATION
    assert (server / "default/dhcp-server").read_text() == 'INTERFACES="eth0 "\n'
    assert net.addresses(backend.link) == []
    assert not list(card_runner.place.rundir.joinpath("journal").iterdir())
