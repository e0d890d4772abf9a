"""The running kernel's version, for the few questions that cannot be probed. Versions lie where
distributions port changes back, so an answer may only be trusted in the safe direction.
"""

from __future__ import annotations

import functools
import os


@functools.cache
def linux() -> tuple[int, int]:
    """(6, 18) for 6.18.44-anything."""
    major, minor, *_ = os.uname().release.split(".")
    return int(major), int("".join(c for c in minor if c.isdigit()) or "0")
