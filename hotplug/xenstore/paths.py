"""Paths of the store: which are valid, and their bytes on the wire.

Checked before sending, so that the error names the path and comes from the caller's own stack.
The rules are those of Xen's docs/misc/xenstore.txt and the limits of xen/include/public/io/
xs_wire.h. A path that does not start with a slash is relative to the domain's own directory,
``/local/domain/<own domid>``; xenstored itself resolves it (over its socket the domain is 0). A
daemon may accept less than this, and then refuses with EINVAL.
"""

from __future__ import annotations

import errno

ABSOLUTE_MAX = 3072  # bytes, XENSTORE_ABS_PATH_MAX
RELATIVE_MAX = 2048  # bytes, XENSTORE_REL_PATH_MAX
ALLOWED = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-/_@"


def encode(path: str) -> bytes:
    """A path as requests carry it, with its NUL; OSError EINVAL if it is not a valid one."""
    try:
        raw = path.encode("ascii")
    except UnicodeEncodeError:
        raise _invalid(path) from None
    # translate() deletes what is allowed: the cheapest test of every byte that there is.
    if (
        not raw
        or raw.translate(None, ALLOWED)
        or len(raw) > RELATIVE_MAX
        or b"//" in raw
        or raw.endswith(b"/")
    ):
        _check_closely(path, raw)
    return raw + b"\0"


def _check_closely(path: str, raw: bytes) -> None:
    """Tell the rare valid paths (the root, long absolute ones) from the invalid."""
    limit = ABSOLUTE_MAX if raw.startswith(b"/") else RELATIVE_MAX
    if (
        not raw
        or raw.translate(None, ALLOWED)
        or len(raw) > limit
        or b"//" in raw
        or (raw.endswith(b"/") and raw != b"/")
    ):
        raise _invalid(path)


def _invalid(path: str) -> OSError:
    if not path:
        problem = "the empty path does not exist in xenstore"
    elif len(path) > RELATIVE_MAX:
        problem = f"too long for xenstore ({len(path)} bytes, the limit is {ABSOLUTE_MAX}, "
        problem += f"or {RELATIVE_MAX} for a relative path)"
    else:
        problem = (
            "not a xenstore path: letters, digits and -/_@, no empty parts, no slash at the end"
        )
    return OSError(errno.EINVAL, problem, path)
