"""linux/netlink.h, linux/rtnetlink.h, linux/if_link.h and linux/neighbour.h: numbers, no code."""

from __future__ import annotations

import struct

# linux/netlink.h
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR = 0x1, 0x4, 0x10
NLM_F_DUMP = 0x300  # of a request that gets something
NLM_F_REPLACE, NLM_F_CREATE = 0x100, 0x400  # of one that makes something
NLMSG_ERROR, NLMSG_DONE = 2, 3
SOL_NETLINK = 270
NETLINK_GET_STRICT_CHK = 12
HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
ERROR_CODE = slice(16, 20)  # of a message: struct nlmsgerr begins with a negative errno
IFADDR = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix, flags, scope, index

# linux/rtnetlink.h, net/core/rtnetlink.c
RTNL_KIND_MASK, RTNL_KIND_GET = 3, 2
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH = 28, 29
RTMGRP_LINK = 1
RTEXT_FILTER_SKIP_STATS = 1 << 3
RT_TABLE_MAIN = 254
RTPROT_BOOT = 3  # what the ip command says where nobody says anything
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
RTN_UNICAST = 1

# linux/socket.h, linux/if.h, linux/if_addr.h, linux/neighbour.h
AF_INET, AF_BRIDGE, AF_INET6 = 2, 7, 10
IFF_UP = 1
IFA_F_SECONDARY = 1
NUD_PERMANENT = 0x80
NTF_PROXY = 0x08

# linux/if_bridge.h: flags of struct bridge_vlan_info
BRIDGE_VLAN_INFO_PVID, BRIDGE_VLAN_INFO_UNTAGGED = 1 << 1, 1 << 2
BRIDGE_VLAN_INFO_RANGE_BEGIN, BRIDGE_VLAN_INFO_RANGE_END = 1 << 3, 1 << 4
