"""The loops over pages, in C if that was built, else in Python: ``native.classify`` and others."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hotplug.restore import loops_slow as native
else:
    try:
        from hotplug.restore import _native as native
    except ImportError:
        from hotplug.restore import loops_slow as native

__all__ = ["native"]
