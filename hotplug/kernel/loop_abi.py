"""<linux/loop.h> in Python: its names, its order, no code.

A test compiles a C program and compares every size, offset and constant. LOOP_CONFIGURE is what
makes Linux 5.8 (commit 3448914e8cc5) our floor.
"""

from __future__ import annotations

from struct import Struct

LO_NAME_SIZE = 64
LO_KEY_SIZE = 32

LO_FLAGS_READ_ONLY = 1
LO_FLAGS_AUTOCLEAR = 4
LO_FLAGS_PARTSCAN = 8
LO_FLAGS_DIRECT_IO = 16

# struct loop_info64
LOOP_INFO64 = Struct(
    "="
    "Q"  # lo_device
    "Q"  # lo_inode
    "Q"  # lo_rdevice
    "Q"  # lo_offset
    "Q"  # lo_sizelimit
    "I"  # lo_number
    "I"  # lo_encrypt_type
    "I"  # lo_encrypt_key_size
    "I"  # lo_flags
    f"{LO_NAME_SIZE}s"  # lo_file_name
    f"{LO_NAME_SIZE}s"  # lo_crypt_name
    f"{LO_KEY_SIZE}s"  # lo_encrypt_key
    "2Q"  # lo_init
)

# struct loop_config; what we do not set is padding, which Struct writes as zeros
LOOP_CONFIG = Struct(
    "="
    "I"  # fd
    "I"  # block_size
    "52x"  # info.lo_device .. info.lo_encrypt_key_size
    "I"  # info.lo_flags
    f"{LO_NAME_SIZE}s"  # info.lo_file_name
    "112x"  # info.lo_crypt_name .. info.lo_init
    "64x"  # __reserved
)

LOOP_CLR_FD = 0x4C01
LOOP_SET_STATUS64 = 0x4C04
LOOP_GET_STATUS64 = 0x4C05
LOOP_CHANGE_FD = 0x4C06
LOOP_CONFIGURE = 0x4C0A

# /dev/loop-control
LOOP_CTL_ADD = 0x4C80
LOOP_CTL_REMOVE = 0x4C81
LOOP_CTL_GET_FREE = 0x4C82

LOOP_MAJOR = 7  # <linux/major.h>
BLKSSZGET = 0x1268  # <linux/fs.h>
BLKGETDISKSEQ = 0x80081280  # <linux/fs.h>, since Linux 5.15, commit 7957d93bf32b
