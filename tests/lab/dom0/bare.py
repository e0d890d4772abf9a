"""Turns the pages of a save file that a test has marked into zeros: bare.py IN BARE FULL.

In BARE they are allocations without content, which the format has a type for; FULL has zeros.
It knows PV and PVH guests.
"""

import os
import sys
from array import array
from dataclasses import replace

sys.path.append("/usr/local/lib/xen-hotplug")

from hotplug.restore import framing, pages, savefile
from hotplug.restore.image import Image
from hotplug.restore.pieces import Pages

PAGE, XALLOC = 4096, 14
MARKED = b"this page of the guest is zero.\n" * (PAGE // 32)

source, bare_path, full_path = sys.argv[1:]
image = Image(os.open(source, os.O_RDONLY), source)
marked = 0
with open(bare_path, "wb") as bare, open(full_path, "wb") as full:
    for piece in image.pieces(savefile.parse()):
        if not isinstance(piece, Pages):
            for out in (bare, full):
                out.write(framing.pack(piece))
            continue
        entries, kept, zeroed = list(piece.entries), [], []
        for index, (kind, pfn) in enumerate(
            zip(pages.types(piece.entries), pages.pfns(piece.entries), strict=True)
        ):
            if kind >= pages.BROKEN:
                continue
            page = image.read(PAGE)
            if page == MARKED:
                marked += 1
                entries[index] = pages.entry(XALLOC, pfn)
                zeroed.append(bytes(PAGE))
            else:
                kept.append(page)
                zeroed.append(page)
        bare.write(framing.pack(replace(piece, entries=array("Q", entries), data_pages=len(kept))))
        bare.writelines(kept)
        full.write(framing.pack(piece))
        full.writelines(zeroed)
print(marked)
