"""The releases of Xen that the lab knows, each as Debian ships it."""

from __future__ import annotations

import os
from dataclasses import dataclass

DOM0_PACKAGES = (
    # what Xen's scripts and ours need
    *("bridge-utils", "conntrack", "e2fsprogs", "iproute2", "iptables", "kmod", "nftables"),
    *("openvswitch-switch", "procps", "python3", "qemu-system-xen", "udev"),
    # the system, and what tests look with
    *("busybox-static", "ethtool", "linux-image-amd64", "strace", "systemd-sysv", "tcpdump"),
)


@dataclass(frozen=True, slots=True)
class Release:
    """A version of Xen, and the Debian that has it."""

    xen: str
    suite: str

    @property
    def packages(self) -> tuple[str, ...]:
        return (*DOM0_PACKAGES, f"xen-hypervisor-{self.xen}-amd64", f"xen-utils-{self.xen}")


RELEASES = {
    release.xen: release
    for release in (
        Release("4.17", "bookworm"),
        Release("4.20", "trixie"),
    )
}


def is_chosen() -> bool:
    return bool(os.environ.get("XEN"))


def chosen() -> Release:
    """What XEN in the environment says; the older one by default."""
    name = os.environ.get("XEN") or "4.17"
    if name not in RELEASES:
        raise SystemExit(f"XEN={name}: the lab knows {' and '.join(RELEASES)}")
    return RELEASES[name]
