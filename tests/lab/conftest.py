"""The ``lab`` fixture: a real Xen for the whole session, and one of its own for who wrecks it."""

from __future__ import annotations

import pytest
from lab import hotplug
from lab.guests import driver_domain
from lab.image import image
from lab.machine import Machine
from lab.releases import RELEASES, chosen, is_chosen


def pytest_generate_tests(metafunc):
    """Each test runs on the chosen release, some of them on every one unless one was chosen."""
    if "release" not in metafunc.fixturenames:
        return
    everywhere = metafunc.definition.get_closest_marker("every_release") and not is_chosen()
    releases = list(RELEASES.values()) if everywhere else [chosen()]
    metafunc.parametrize("release", releases, ids=lambda r: r.xen, indirect=True, scope="session")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """What Xen, dom0 and the guests said belongs to a failure."""
    report = yield
    if report.failed:
        for name in ("host", "bare_lab"):
            machine = item.funcargs.get(name)
            if isinstance(machine, Machine):
                said = machine.logs() if machine.is_on else machine.serial()
                report.sections.append((f"logs of {name}", said))
    return report


@pytest.fixture(scope="session")
def release(request):
    return request.param


@pytest.fixture(scope="session")
def host(release):
    """One boot for all tests."""
    with Machine(image(release)) as machine:
        hotplug.use_ours(machine)
        yield machine


@pytest.fixture
def lab(host):
    """A dom0 with our scripts, an agent and no guests; that is how it has to be left."""
    yield host
    hotplug.destroy_guests(host)  # of a test that failed
    hotplug.use_ours(host)
    hotplug.refuse_leaks(host)


@pytest.fixture
def bare_lab(release, request):
    """A boot for one test, before ``xen-hotplug install``.

    The arguments of a mark ``boot_options`` are options of dom0's kernel.
    """
    mark = request.node.get_closest_marker("boot_options")
    with Machine(image(release), options=mark.args if mark else ()) as machine:
        yield machine


@pytest.fixture
def own_lab(bare_lab):
    """A boot for one test, with our scripts and an agent."""
    hotplug.use_ours(bare_lab)
    return bare_lab


@pytest.fixture
def server(lab):
    """A driver domain, up, in which nothing serves devices yet."""
    guest = driver_domain(lab)
    guest.start()
    yield guest
    guest.destroy()
