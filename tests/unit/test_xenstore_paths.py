from __future__ import annotations

import errno

import pytest

from hotplug.xenstore.paths import ABSOLUTE_MAX, RELATIVE_MAX, encode


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "a",
        "/a",
        "backend/vbd/5/51712",
        "/local/domain/0/backend/vbd/5/51712/physical-device",
        "azAZ09-_@/x",
        "@releaseDomain",
        "/" + "x" * (ABSOLUTE_MAX - 1),
        "x" * RELATIVE_MAX,
    ],
)
def test_valid(path):
    assert encode(path) == path.encode() + b"\0"


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("", "the empty path"),
        ("//", "no empty parts"),
        ("a//b", "no empty parts"),
        ("a/", "no slash at the end"),
        ("/a/", "no slash at the end"),
        ("a b", "letters, digits"),
        ("a\0", "letters, digits"),
        ("\0", "letters, digits"),
        ("a\0b", "letters, digits"),
        ("a.b", "letters, digits"),
        ("a\n", "letters, digits"),
        ("ä", "letters, digits"),
        ("\udcff", "letters, digits"),
        ("/" + "x" * ABSOLUTE_MAX, "3073 bytes"),
        ("x" * (RELATIVE_MAX + 1), "2049 bytes"),
    ],
)
def test_invalid(path, problem):
    with pytest.raises(OSError, match=problem) as caught:
        encode(path)
    assert caught.value.errno == errno.EINVAL
    assert caught.value.filename == path
