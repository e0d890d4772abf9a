"""The settings file."""

import pytest

from hotplug.config import Config, DiskRule, load, parse
from hotplug.errors import ConfigError


def test_no_file_means_defaults(tmp_path, monkeypatch):
    monkeypatch.setattr("hotplug.config.DEFAULT_FILE", str(tmp_path / "none.toml"))
    assert load({}) == Config()
    assert load({"XEN_HOTPLUG_RUNDIR": "/run/other"}).rundir == "/run/other"


def test_the_shipped_file_states_the_defaults(request):
    shipped = request.config.rootpath / "etc" / "xen-hotplug.toml"
    assert load({"XEN_HOTPLUG_CONFIG": str(shipped)}) == Config()
    text = "\n".join(
        line.removeprefix("#")
        for line in shipped.read_text().splitlines()
        if line.startswith("#") and " = " in line
    )
    for name in ("deadline", "log_file", "syslog", "scripts", "udev", "antispoof"):
        assert f"{name} = " in text


def test_values():
    settings = parse(
        "f", {"deadline": 20, "udev": True, "disk": [{"match": "/a/*", "direct_io": True}]}
    )
    assert settings.deadline == 20.0
    assert settings.udev
    assert settings.disk("/a/b") == DiskRule("/a/*", direct_io=True)
    assert settings.disk("/c") == DiskRule("/c")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"dedline": 3}, "f: dedline: there is no such setting"),
        ({"deadline": "3"}, "f: deadline: '3' is not of the right type"),
        ({"deadline": 36}, "f: deadline: 36"),
        ({"deadline": 0}, "f: deadline: 0"),
        ({"deadline": True}, "f: deadline: True is not of the right type"),
        ({"antispoof": "yes"}, "f: antispoof: must be one of ('auto', 'always', 'never')"),
        ({"antispoof": True}, "f: antispoof: True is not of the right type"),
        ({"udev": 1}, "f: udev: 1 is not of the right type"),
        ({"disk": {"match": "x"}}, "f: disk: "),
        ({"disk": [3]}, "f: disk 1: "),
        ({"disk": [{"direct_io": True}]}, "f: disk 1: match is missing"),
        ({"disk": [{"match": "x", "blocks": 3}]}, "f: disk 1: blocks: there is no such"),
        ({"disk": [{"match": "x", "block_size": 513}]}, "f: disk 1: block_size: must be"),
    ],
)
def test_errors_say_file_key_and_problem(table, words):
    with pytest.raises(ConfigError) as caught:
        parse("f", table)
    assert str(caught.value).startswith(words)


def test_a_named_file_must_exist(tmp_path):
    with pytest.raises(ConfigError, match="no such configuration file"):
        load({"XEN_HOTPLUG_CONFIG": str(tmp_path / "none.toml")})


def test_broken_toml_names_the_file(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text("deadline = ")
    with pytest.raises(ConfigError, match=str(path)):
        load({"XEN_HOTPLUG_CONFIG": str(path)})
