"""The commented defaults in etc/xen-hotplug.toml are the defaults."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

from hotplug import config

FILE = Path(__file__).parents[2] / "etc" / "xen-hotplug.toml"
SETTING = re.compile(r"^#(\w+ = |\[\[)", re.MULTILINE)


def test_as_it_is_shipped_it_sets_nothing():
    assert tomllib.loads(FILE.read_text()) == {}


def test_its_comments_show_every_default():
    shown = tomllib.loads(SETTING.sub(r"\1", FILE.read_text()))
    (rule,) = config.parse(str(FILE), shown).disks
    assert rule == config.DiskRule(rule.match)
    assert shown.pop("disk") == [dataclasses.asdict(rule)]

    defaults = dataclasses.asdict(config.Config())
    del defaults["disks"], defaults["rundir"]  # rules are shown above, rundir is not in the file
    assert shown == defaults
