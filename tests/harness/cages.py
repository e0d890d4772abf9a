"""Commands that run another command in a mount namespace where some devices are missing."""

from __future__ import annotations

# A /dev with the nodes that every program needs, and no more.
BARE_DEV = """
mount -t tmpfs -o mode=0755 tmpfs /dev
for device in null:3 zero:5 full:7 random:8 urandom:9; do
    mknod -m 666 "/dev/${device%:*}" c 1 "${device#*:}"
done
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
"""
LOOP_CONTROL = "mknod -m 600 /dev/loop-control c 10 237\n"


def _cage(script: str) -> tuple[str, ...]:
    unshare = ("unshare", "--mount", "--propagation", "private", "--")
    return (*unshare, "sh", "-ec", f'{script}exec "$@"', "sh")


NO_LOOPS = _cage(BARE_DEV)  # as if every loop device was taken and no more could be made
UNUSABLE_LOOPS = _cage(BARE_DEV + LOOP_CONTROL)  # one is offered, and cannot be opened
