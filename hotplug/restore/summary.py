"""What is in a save file, in figures."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hotplug.restore import framing, pages, records, savefile
from hotplug.restore.pages import PAGE_TABLES, POPULATED, XALLOC
from hotplug.restore.pieces import (
    PAGE_SIZE,
    Blob,
    Guest,
    Layer,
    LegacyHeader,
    LibxcHeader,
    LibxlHeader,
    P2mFrames,
    Pages,
    PvInfo,
    Record,
    Vcpu,
    XendHeader,
    XlHeader,
)
from hotplug.restore.records import Libxc, Libxl
from hotplug.restore.zeros import Scanner

if TYPE_CHECKING:
    from collections.abc import Callable

    from hotplug.restore.image import Image
    from hotplug.restore.legacy import Choice
    from hotplug.restore.pieces import Piece

BLOCK = 512  # bytes that st_blocks counts


@dataclass(slots=True)
class Summary:
    """Filled while a file is read."""

    layers: list[str] = field(default_factory=list)
    records: dict[tuple[Layer, int], list[int]] = field(default_factory=dict)  # count, bytes
    name: str | None = None
    declared: str | None = None  # the guest's type, as its configuration says
    guest: Guest | None = None
    xen: tuple[int, int] | None = None
    info: PvInfo | None = None
    pages: int = 0  # of a PV guest's table; of others, those that are there
    vcpus: set[int] = field(default_factory=set)
    types: Counter[int] = field(default_factory=Counter)
    zero: int = 0
    in_holes: int = 0
    dense: bool = False
    trailing: int = 0

    def count(self, layer: Layer, kind: int, size: int) -> None:
        entry = self.records.setdefault((layer, kind), [0, 0])
        entry[0] += 1
        entry[1] += size


def summarise(
    image: Image,
    choice: Choice | None = None,
    *,
    quick: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Summary:
    """Read a file; only its headers if it has to be quick, and then zero pages are not counted."""
    found = Summary()
    scanner = Scanner(image)
    for piece in image.pieces(savefile.parse(choice)):
        if isinstance(piece, Pages):
            count_pages(found, image, None if quick else scanner, piece)
        else:
            note(found, piece)
        progress(image.offset)
    if image.size is not None:
        found.trailing = image.size - image.offset
    return found


def note(found: Summary, piece: Piece) -> None:
    match piece:
        case XlHeader():
            read_config(found, piece)
        case LibxcHeader(_, guest, xen):
            found.guest, found.xen = guest, xen
        case Blob(bulk=int(bulk)):
            found.count(Layer.LIBXL, Libxl.EMULATOR_CONTEXT, framing.IDS.size + bulk)
        case Record(layer, kind, body, value):
            found.count(layer, kind, len(body))
            if layer is Layer.LIBXC:
                note_record(found, kind, value)
    name = layer_name(piece)
    if name and not any(one.startswith("legacy") for one in found.layers):
        found.layers.append(name)


def layer_name(piece: Piece) -> str | None:
    """What begins here. Of a legacy stream it was only inferred."""
    match piece:
        case XlHeader():
            return "xl"
        case XendHeader():
            return "xend"
        case LegacyHeader(word):
            return f"legacy stream of {8 * word}-bit tools"
        case LibxlHeader():
            return f"libxl version {framing.LIBXL_VERSION}"
        case LibxcHeader(version):
            return f"libxc version {version}"
    return None


def note_record(found: Summary, kind: int, value: object) -> None:
    match value:
        case PvInfo():
            found.info = value
        case P2mFrames(end=end):
            found.pages = max(found.pages, end + 1)
        case Vcpu(vcpu, blob) if kind == Libxc.X86_PV_VCPU_BASIC and blob:
            found.vcpus.add(vcpu)
    if kind == Libxc.DENSE:
        found.dense = True


def read_config(found: Summary, header: XlHeader) -> None:
    """Name and type of the guest, if the configuration is of the kind that xl writes today."""
    if not header.mandatory_flags & framing.XL_JSON:
        return
    try:
        told = json.loads(framing.config(header.optional_data).rstrip(b"\0"))["c_info"]
        found.name, found.declared = text(told.get("name")), text(told.get("type"))
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return  # verify complains


def text(told: object) -> str | None:
    """What a file says, if it is a string; nothing in it that a terminal would obey."""
    if not isinstance(told, str):
        return None
    return "".join(letter if letter.isprintable() else "?" for letter in told)


def count_pages(found: Summary, image: Image, scanner: Scanner | None, batch: Pages) -> None:
    kinds = Counter(pages.types(batch.entries))
    found.types += kinds
    found.count(Layer.LIBXC, Libxc.PAGE_DATA, 8 + 8 * len(batch.entries) + batch.bulk)
    if found.dense:
        found.zero += kinds[XALLOC]
    if found.guest is Guest.HVM:
        found.pages += sum(number for kind, number in kinds.items() if kind in POPULATED)
    end = image.offset + batch.bulk
    while image.offset < end:
        hole = image.hole(end - image.offset) // PAGE_SIZE
        found.in_holes += hole
        found.zero += hole
        image.skip(hole * PAGE_SIZE)
        ahead = min(
            -(-image.data_ahead(end - image.offset) // PAGE_SIZE) * PAGE_SIZE, end - image.offset
        )
        if scanner is None:
            image.skip(ahead)
        else:
            found.zero += sum(
                count for count, data in scanner.runs(ahead // PAGE_SIZE) if data is None
            )


def facts(found: Summary, image: Image, *, quick: bool) -> dict[str, Any]:
    """For programs."""
    status = os.fstat(image.fd)
    total = found.types
    return {
        "file": image.name,
        "size": image.size,
        "allocated": status.st_blocks * BLOCK,
        "layers": found.layers,
        "form": form(found),
        "name": found.name,
        "guest": {
            "type": kind_of_guest(found),
            "bits": found.info.width * 8 if found.info else None,
            "pages": found.pages,
            "bytes": found.pages * PAGE_SIZE,
            "vcpus": len(found.vcpus) or None,
        },
        "saved_by_xen": ".".join(map(str, found.xen)) if found.xen and found.xen[0] else None,
        "pages": {
            "with_data": sum(total[kind] for kind in pages.WITH_DATA),
            "zero": None if quick else found.zero,
            "in_holes": found.in_holes,
            "page_tables": sum(total[kind] for kind in PAGE_TABLES),
            "by_type": {pages.NAMES[kind]: count for kind, count in sorted(total.items())},
        },
        "records": [
            {
                "layer": str(layer),
                "type": kind,
                "name": records.name(kind, Libxc if layer is Layer.LIBXC else Libxl),
                "count": count,
                "bytes": size,
            }
            for (layer, kind), (count, size) in found.records.items()
        ],
        "trailing_bytes": found.trailing,
    }


def kind_of_guest(found: Summary) -> str | None:
    """PVH and HVM have the same stream; the configuration or a device model tells."""
    if found.guest is not Guest.HVM:
        return "pv" if found.guest else None
    if found.declared in ("hvm", "pvh"):
        return found.declared
    return "hvm" if (Layer.LIBXL, Libxl.EMULATOR_CONTEXT) in found.records else "hvm or pvh"


def form(found: Summary) -> str:
    if found.dense:
        return "dense"
    return "sparse" if (Layer.LIBXC, Libxc.FILLER) in found.records else "plain"
