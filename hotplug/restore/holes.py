"""Holes made in a file that is there.

The ioctl FS_IOC_UNRESVSP64 is fallocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE) for every file
system that has it (Linux 5.5, commit 837a6e7f5cdb), and Python has the ioctl. What is in a hole
reads as zeros; parts of blocks at its ends are zeroed. So a hole where zeros were changes nothing
that can be read, whenever it is interrupted.
"""

from __future__ import annotations

import fcntl
import os
import struct

FS_IOC_UNRESVSP64 = 0x4030582B  # _IOW('X', 43, struct space_resv)
SPACE_RESV = struct.Struct("hhxxxxqqiI4i")  # l_type, l_whence, l_start, l_len, l_sysid, l_pid, pad


def punch(fd: int, start: int, length: int) -> None:
    """Free the whole blocks of a part of a file that is all zero."""
    block = os.fstat(fd).st_blksize
    first = -(-start // block) * block
    size = (start + length) // block * block - first
    if size > 0:
        request = SPACE_RESV.pack(0, os.SEEK_SET, first, size, 0, 0, 0, 0, 0, 0)
        fcntl.ioctl(fd, FS_IOC_UNRESVSP64, request)
