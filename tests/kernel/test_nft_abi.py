"""nft_abi.py against the kernel's headers, by a C program."""

from __future__ import annotations

import subprocess

from hotplug.kernel import nft_abi

CONSTANTS = [name for name in vars(nft_abi) if isinstance(vars(nft_abi)[name], int)]
LINE = '    printf("%s %%lld\\n", (long long)(%s));'
PROGRAM = """
#include <linux/netlink.h>
#include <linux/netfilter.h>
#include <linux/netfilter_bridge.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <stdio.h>

int main(void)
{
%s
    return 0;
}
"""


def test_constants(tmp_path):
    source = tmp_path / "nft_abi.c"
    source.write_text(PROGRAM % "\n".join(LINE % (name, name) for name in CONSTANTS))
    program = tmp_path / "nft_abi"
    subprocess.run(["gcc", "-o", program, source], check=True)
    lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout.split()
    said = dict(zip(lines[::2], map(int, lines[1::2]), strict=True))
    assert said == {name: getattr(nft_abi, name) for name in CONSTANTS}
    assert len(said) > 100
