"""Xen does not promise that the pages of a new guest are zero (populate_physmap).

Pages that dom0's balloon gave up hold what dom0 had there, if dom0's kernel does not clear them.
Where a save file does not carry its zero pages, whoever restores it has to write them.
"""

from __future__ import annotations

import pytest
from lab import hotplug
from lab.guests import Guest
from lab.test_restore import OURS

GIVEN, LEFT = 2000, 900  # MB that dom0 has, and that it keeps
# What dom0 has in its memory when it is asked to give it up.
FILL = """
import mmap
memory = mmap.mmap(-1, 1000 << 20)
page = b"dom0 had this".ljust(mmap.PAGESIZE, b".")
for _ in range(len(memory) // len(page)):
    memory.write(page)
"""
DOUBLED = 12  # times
SIZE = 4096 << DOUBLED  # bytes that are to be zero
# Each page as dom0/bare.py knows it.
MARK = (
    "for i in $(seq 128); do echo 'this page of the guest is zero.'; done >/tmp/marked;"
    f" for i in $(seq {DOUBLED}); do"
    " cat /tmp/marked /tmp/marked >/tmp/twice; mv /tmp/twice /tmp/marked; done"
)


def give_up_memory(lab):
    """Let Xen have what dom0 had, and nobody has cleared."""
    for memory, test in ((GIVEN, "-ge"), (LEFT, "-le")):
        lab.do(f"xl mem-set Domain-0 {memory}")
        has = "$(xl list Domain-0 | awk 'END { print $3 }')"
        lab.wait_for(f"[ {has} {test} {memory} ]", f"dom0 has {memory} MB")
        if memory == GIVEN:
            lab.do("python3 -IS /tmp/fill.py")


def not_zero(lab, guest, helper, form):
    """How many bytes are not zero in a guest that was restored, of those that are to be."""
    give_up_memory(lab)
    done = lab.dom0(f"{helper} xl restore {guest.config_path} /tmp/{form}.save")
    assert done.status == 0, str(done)
    assert ("xen-hotplug: info: restored" in done.stderr) == (helper is OURS), str(done)
    assert guest.run("wc -c </tmp/marked") == str(SIZE)
    found = int(guest.run("tr -d '\\0' </tmp/marked | wc -c"))
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
    guest.run(MARK)
    lab.do(f"{stock} xl save {guest.name} /tmp/marked.save")
    marked = lab.do("python3 -IS /lab/bare.py /tmp/marked.save /tmp/bare.save /tmp/full.save")
    assert int(marked) >= SIZE // 4096  # and what is left of half of it
    lab.do("xen-hotplug savefile compact /tmp/full.save /tmp/sparse.save")
    lab.do("xen-hotplug savefile compact --dense /tmp/full.save /tmp/dense.save")
    lab.do("rm /tmp/marked.save")

    lab.put("/tmp/fill.py", FILL)
    assert not_zero(lab, guest, stock, "bare") > SIZE // 100
    for form in ("bare", "dense", "sparse"):
        assert not_zero(lab, guest, OURS, form) == 0, form
    assert not_zero(lab, guest, stock, "bare") > SIZE // 100, "Xen had no such pages to give"
