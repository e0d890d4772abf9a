"""The bodies of records: what each says, and what none may say."""

from __future__ import annotations

import struct

import pytest
import savefiles
from hypothesis import given
from hypothesis import strategies as st

from hotplug.restore import records
from hotplug.restore.pieces import (
    EmulatorXenstore,
    HvmParams,
    P2mFrames,
    PvInfo,
    StreamError,
    TscInfo,
    Vcpu,
)
from hotplug.restore.records import Libxc

BASIC, EXTENDED, XSAVE, MSRS = (
    Libxc.X86_PV_VCPU_BASIC,
    Libxc.X86_PV_VCPU_EXTENDED,
    Libxc.X86_PV_VCPU_XSAVE,
    Libxc.X86_PV_VCPU_MSRS,
)


def vcpu(number, blob):
    return struct.pack("<II", number, 0) + blob


def body(record):
    return record[8 : 8 + int.from_bytes(record[4:8], "little")]


ACCEPTED = [
    (Libxc.X86_PV_INFO, b"\x08\x04" + bytes(6), PvInfo(8, 4)),
    (Libxc.X86_PV_INFO, b"\x04\x03" + bytes(6), PvInfo(4, 3)),
    (Libxc.X86_PV_P2M_FRAMES, struct.pack("<II2Q", 0, 1023, 5, 6), P2mFrames(0, 1023, (5, 6))),
    (Libxc.X86_PV_P2M_FRAMES, struct.pack("<IIQ", 700, 701, 5), P2mFrames(700, 701, (5,))),
    (Libxc.X86_PV_P2M_FRAMES, struct.pack("<II2Q", 511, 512, 5, 6), P2mFrames(511, 512, (5, 6))),
    (BASIC, vcpu(0, bytes(5168)), Vcpu(0, bytes(5168))),
    (EXTENDED, vcpu(3, bytes(128)), Vcpu(3, bytes(128))),
    (XSAVE, vcpu(3, bytes(16)), Vcpu(3, bytes(16))),
    (MSRS, vcpu(8191, bytes(48)), Vcpu(8191, bytes(48))),
    *((kind, vcpu(1, b""), Vcpu(1, b"")) for kind in (BASIC, EXTENDED, XSAVE, MSRS)),
    (Libxc.SHARED_INFO, bytes(4096), None),
    (Libxc.X86_TSC_INFO, body(savefiles.tsc_info()), TscInfo(1, 2_400_000, 12345, 7)),
    (Libxc.HVM_CONTEXT, b"x", None),
    (Libxc.HVM_PARAMS, bytes(8), HvmParams(())),
    (Libxc.HVM_PARAMS, body(savefiles.params(((1, 2), (3, 4)))), HvmParams(((1, 2), (3, 4)))),
    (Libxc.VERIFY, b"", None),
    (Libxc.STATIC_DATA_END, b"", None),
    (Libxc.X86_CPUID_POLICY, bytes(48), None),
    (Libxc.X86_MSR_POLICY, bytes(32), None),
    (Libxc.DENSE, struct.pack("<II", 1, 0), None),
    (Libxc.FILLER, bytes(77), None),
    (0x80000005, b"anything", None),
]

REFUSED = [
    (Libxc.X86_PV_INFO, b"\x08\x03" + bytes(6), "width 8 with 3"),
    (Libxc.X86_PV_INFO, b"\x04\x04" + bytes(6), "width 4 with 4"),
    (Libxc.X86_PV_INFO, b"\x08\x04" + bytes(5), "7 bytes"),
    (Libxc.X86_PV_INFO, b"\x08\x04" + bytes(7), "9 bytes"),
    (Libxc.X86_PV_P2M_FRAMES, bytes(7), "7 bytes"),
    (Libxc.X86_PV_P2M_FRAMES, struct.pack("<IIQ", 5, 4, 5), "0x5 to 0x4"),
    (Libxc.X86_PV_P2M_FRAMES, struct.pack("<IIQ", 0, 512, 5), "should be 24"),
    (Libxc.X86_PV_P2M_FRAMES, struct.pack("<II2Q", 0, 511, 5, 6), "should be 16"),
    (Libxc.X86_PV_P2M_FRAMES, struct.pack("<IIQ", 0, 1 << 28, 5), "limit is 268435456"),
    (BASIC, vcpu(0, bytes(2800)), "not 5168"),
    (BASIC, vcpu(8192, bytes(5168)), "vcpu 8192"),
    (BASIC, bytes(7), "7 bytes"),
    (EXTENDED, vcpu(0, bytes(129)), "129 bytes"),
    (XSAVE, vcpu(0, bytes(15)), "too short"),
    (MSRS, vcpu(0, bytes(17)), "multiple of 16"),
    (Libxc.SHARED_INFO, bytes(4095), "4095"),
    (Libxc.X86_TSC_INFO, bytes(23), "23 bytes"),
    (Libxc.HVM_CONTEXT, b"", "empty"),
    (Libxc.HVM_PARAMS, bytes(7), "7 bytes"),
    (Libxc.HVM_PARAMS, struct.pack("<II", 1, 0), "1 HVM parameters in 8"),
    (Libxc.HVM_PARAMS, struct.pack("<IIQQ", 0, 0, 1, 1), "0 HVM parameters in 24"),
    (Libxc.HVM_PARAMS, struct.pack("<II", 1025, 0) + bytes(16 * 1025), "1025 HVM"),
    (Libxc.END, b"x", "empty"),
    (Libxc.VERIFY, b"x", "empty"),
    (Libxc.STATIC_DATA_END, b"x", "empty"),
    (Libxc.X86_CPUID_POLICY, b"", "0 bytes"),
    (Libxc.X86_CPUID_POLICY, bytes(25), "25 bytes"),
    (Libxc.X86_MSR_POLICY, b"", "0 bytes"),
    (Libxc.X86_MSR_POLICY, bytes(17), "17 bytes"),
    (Libxc.DENSE, struct.pack("<II", 2, 0), "unknown here"),
]


@pytest.mark.parametrize(("kind", "content", "value"), ACCEPTED)
def test_accepted(kind, content, value):
    assert records.value(kind, content, 8) == value


@pytest.mark.parametrize(("kind", "content", "words"), REFUSED)
def test_refused(kind, content, words):
    with pytest.raises(StreamError, match=words):
        records.value(kind, content, 8)


def test_a_guest_of_32_bits_has_its_own_sizes():
    assert records.value(BASIC, vcpu(0, bytes(2800)), 4) == Vcpu(0, bytes(2800))
    frames = struct.pack("<IIQ", 0, 1023, 5)
    assert records.value(Libxc.X86_PV_P2M_FRAMES, frames, 4) == P2mFrames(0, 1023, (5,))


def test_every_record_of_libxc_was_tried():
    not_read = {Libxc.PAGE_DATA, Libxc.TOOLSTACK, Libxc.CHECKPOINT, Libxc.CHECKPOINT_DIRTY_PFN_LIST}
    assert {kind for kind, *_ in (*ACCEPTED, *REFUSED)} >= set(Libxc) - not_read


@pytest.mark.parametrize(
    "text", [b"", b"a\0b\0", b"key\0value\0other\0\0"], ids=["none", "one", "an empty value"]
)
def test_keys_of_the_device_model(text):
    found = records.emulator_xenstore(struct.pack("<II", 2, 5) + text)
    strings = text.split(b"\0")[:-1]
    assert found == EmulatorXenstore(2, 5, tuple(zip(strings[::2], strings[1::2], strict=True)))
    assert records.pack_emulator_xenstore(found) == struct.pack("<II", 2, 5) + text


@pytest.mark.parametrize("text", [b"a", b"a\0", b"a\0b", b"\0b\0", b"a\0b\0c\0"])
def test_keys_of_the_device_model_refused(text):
    with pytest.raises(StreamError, match="device model"):
        records.emulator_xenstore(bytes(8) + text)


def test_names():
    assert records.name(0x10) == "STATIC_DATA_END"
    assert records.name(0x80000001) == "0x80000001"
    assert records.name(3, records.Libxl) == "EMULATOR_CONTEXT"


u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)


@given(st.builds(TscInfo, u32, u32, u64, u32))
def test_tsc_info_there_and_back(tsc):
    assert records.tsc_info(records.pack_tsc_info(tsc)) == tsc


@given(st.lists(st.tuples(u64, u64), max_size=20))
def test_hvm_params_there_and_back(pairs):
    assert records.hvm_params(records.pack_hvm_params(pairs)) == HvmParams(tuple(pairs))


@given(st.sampled_from([4, 8]), st.integers(0, 10000), st.integers(0, 3000), st.data())
def test_p2m_frames_there_and_back(width, start, more, data):
    per_frame = 4096 // width
    count = (start + more) // per_frame - start // per_frame + 1
    frames = tuple(data.draw(st.lists(u64, min_size=count, max_size=count)))
    p2m = P2mFrames(start, start + more, frames)
    assert records.p2m_frames(records.pack_p2m_frames(p2m), width) == p2m


@given(st.integers(0, 8191), st.binary(max_size=128))
def test_vcpus_there_and_back(number, blob):
    state = Vcpu(number, blob)
    assert records.vcpu(EXTENDED, records.pack_vcpu(state), 8) == state
    assert records.pv_info(records.pack_pv_info(PvInfo(4, 3))) == PvInfo(4, 3)
