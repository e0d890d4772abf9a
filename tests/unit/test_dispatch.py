"""What the dispatcher lets through, and what becomes of failures."""

import pytest
from fakes_host import World
from fakes_store import FakeStore

from hotplug.agent.deadline import EventDeadline
from hotplug.agent.dispatch import run
from hotplug.events import Action, Device, Event


class FakeLogs:
    """Keeps what is said."""

    def __init__(self):
        self.failures = []

    def failure(self, script, text):
        self.failures.append(f"{script}: {text}")

    def traceback(self, script):
        self.failures.append(f"{script}: a bug")


def outcome(world, base, handler):
    event = Event(Action.ADD, Device("vbd", 5, 51712, base))
    return run(world.host(), FakeLogs(), event, EventDeadline(5.0), handler)


@pytest.mark.parametrize(
    ("domid", "known", "base", "is_ours"),
    [
        (0, None, "backend", True),
        (0, None, "/local/domain/0/backend", True),
        (0, b"0", "/local/domain/0/backend", True),
        (0, b"0", "/local/domain/3/backend", False),
        (3, b"3", "backend", True),
        (3, b"3", "/local/domain/3/backend", True),
        (3, b"3", "/local/domain/0/backend", False),
    ],
)
def test_only_backends_of_our_own_domain(tmp_path, domid, known, base, is_ours):
    store = FakeStore(domid=domid)
    if known is not None:
        store.write("domid", known)
    handled = []
    result = outcome(World(tmp_path, store=store), base, lambda _, event: handled.append(event))
    assert bool(handled) is is_ours
    assert result.status == (0 if is_ours else 1)
    assert is_ours or result.text == (
        f"{base}/vbd/5/51712 belongs to another domain than ours, which is domain {domid}"
    )
