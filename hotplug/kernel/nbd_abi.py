"""linux/nbd-netlink.h, linux/nbd.h and the handshake of the NBD protocol, in Python.

Names and numbers only. The protocol is specified in ``doc/proto.md`` of the reference
implementation, https://github.com/NetworkBlockDevice/nbd.
"""

from __future__ import annotations

import struct

# linux/nbd-netlink.h
NBD_GENL_FAMILY_NAME = "nbd"
NBD_GENL_VERSION = 1

NBD_CMD_CONNECT = 1
NBD_CMD_DISCONNECT = 2

NBD_ATTR_INDEX = 1  # u32
NBD_ATTR_SIZE_BYTES = 2  # u64
NBD_ATTR_BLOCK_SIZE_BYTES = 3  # u64
NBD_ATTR_SERVER_FLAGS = 5  # u64
NBD_ATTR_SOCKETS = 7  # NBD_SOCK_ITEM, each with an NBD_SOCK_FD
NBD_ATTR_BACKEND_IDENTIFIER = 10  # string

NBD_SOCK_ITEM = 1
NBD_SOCK_FD = 1  # u32

# The transmission flags, the same in linux/nbd.h and in the protocol
NBD_FLAG_HAS_FLAGS = 1 << 0
NBD_FLAG_READ_ONLY = 1 << 1

# The handshake; all big-endian
NBD_MAGIC = b"NBDMAGIC"
NBD_OPTS_MAGIC = b"IHAVEOPT"
NBD_CLISERV_MAGIC = bytes.fromhex("0000420281861253")  # the oldstyle handshake
NBD_REP_MAGIC = 0x3E889045565A9

NBD_FLAG_FIXED_NEWSTYLE = 1 << 0
NBD_FLAG_NO_ZEROES = 1 << 1

NBD_OPT_EXPORT_NAME = 1
NBD_OPT_GO = 7

NBD_REP_ACK = 1
NBD_REP_INFO = 3
NBD_REP_FLAG_ERROR = 1 << 31
NBD_REP_ERR_UNSUP = NBD_REP_FLAG_ERROR | 1
NBD_REP_ERR_POLICY = NBD_REP_FLAG_ERROR | 2
NBD_REP_ERR_INVALID = NBD_REP_FLAG_ERROR | 3
NBD_REP_ERR_PLATFORM = NBD_REP_FLAG_ERROR | 4
NBD_REP_ERR_TLS_REQD = NBD_REP_FLAG_ERROR | 5
NBD_REP_ERR_UNKNOWN = NBD_REP_FLAG_ERROR | 6
NBD_REP_ERR_SHUTDOWN = NBD_REP_FLAG_ERROR | 7
NBD_REP_ERR_BLOCK_SIZE_REQD = NBD_REP_FLAG_ERROR | 8

NBD_INFO_EXPORT = 0
NBD_INFO_BLOCK_SIZE = 3

HANDSHAKE_FLAGS = struct.Struct(">H")
CLIENT_FLAGS = struct.Struct(">I")
OPTION_HEADER = struct.Struct(">8sII")  # IHAVEOPT, option, length
REPLY_HEADER = struct.Struct(">QIII")  # NBD_REP_MAGIC, option, type, length
INFO_TYPE = struct.Struct(">H")
INFO_EXPORT = struct.Struct(">HQH")  # type, size, transmission flags
INFO_BLOCK_SIZE = struct.Struct(">HIII")  # type, minimum, preferred, maximum payload
EXPORT_NAME_REPLY = struct.Struct(">QH")  # size, transmission flags
EXPORT_NAME_ZEROES = 124  # bytes, unless NO_ZEROES was agreed on
