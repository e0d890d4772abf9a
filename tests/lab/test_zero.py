"""Xen does not promise that the pages of a new guest are zero (contract of populate_physmap).

Pages that dom0's balloon gave up hold what dom0 had there, if dom0's kernel does not clear them.
Where a save file does not carry its zero pages, whoever restores it has to write them.
"""

from __future__ import annotations

import pytest
from lab import hotplug
from lab.guests import Guest
from lab.test_restore import OURS

PATTERN = "a page that dom0 had before"
LEFT = 900  # MB that dom0 keeps
FILL = f"""
import mmap
memory = mmap.mmap(-1, 1000 << 20)
page = {PATTERN.encode()!r}.ljust(mmap.PAGESIZE, b".")
for _ in range(len(memory) // len(page)):
    memory.write(page)
"""
COUNT = f"""
import mmap
with open("/tmp/core", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as core:
    pages = range(0, len(core) - mmap.PAGESIZE + 1, mmap.PAGESIZE)
    print(sum(core[at : at + 27] == {PATTERN.encode()!r} for at in pages))
"""
# The dense form is one of bare allocations, and a record that has all but us refuse it.
BARE = """
import struct
content = open("/tmp/dense.save", "rb").read()
mark = struct.pack("<IIII", 0x7F58485A, 8, 1, 0)
assert content.count(mark) == 1
open("/tmp/bare.save", "wb").write(content.replace(mark, b""))
"""


def python(lab, text):
    lab.put("/tmp/program.py", text)
    return lab.do("python3 -IS /tmp/program.py")


def foreign_pages(lab, guest, helper, form):
    """How many pages of a guest that was restored hold what dom0 had there."""
    lab.do(f"{helper} xl restore -p {guest.config_path} /tmp/{form}.save")
    lab.do(f"xl dump-core {guest.name} /tmp/core")
    found = int(python(lab, COUNT))
    guest.destroy()
    return found


@pytest.mark.long
@pytest.mark.boot_options("xen_scrub_pages=0", "init_on_alloc=0")
@pytest.mark.parametrize("kind", ["pv", "pvh"])
def test_no_guest_sees_what_dom0_had(own_lab, kind):
    lab = own_lab
    stock = f"LIBXL_SAVE_HELPER={hotplug.stock_helper(lab)}"
    hotplug.await_workers(lab)
    guest = Guest(lab, "zero", kind=kind)
    guest.start()
    lab.do(f"{stock} xl save {guest.name} /tmp/full.save")
    lab.do("xen-hotplug savefile compact /tmp/full.save /tmp/sparse.save")
    lab.do("xen-hotplug savefile compact --dense /tmp/full.save /tmp/dense.save")
    python(lab, BARE)

    python(lab, FILL)
    lab.do(f"xl mem-set Domain-0 {LEFT}")
    lab.wait_for(f"[ $(xl list Domain-0 | awk 'END {{ print $3 }}') -le {LEFT} ]", "it is given up")
    assert foreign_pages(lab, guest, stock, "bare") > 1000
    for form in ("bare", "dense", "sparse"):
        assert foreign_pages(lab, guest, OURS, form) == 0, form
    assert foreign_pages(lab, guest, stock, "bare") > 1000, "Xen has had no such pages to give"
