"""convert-legacy-stream: the program that libxl runs if a save file is of Xen 4.5 or older.

It gets two descriptors: the old stream, at its beginning, and a pipe that libxl reads today's from.
libxl takes the word size of the tools that saved the guest to be its own. That is a guess, and the
stream tells, so it is not believed. What the original does besides, for people, is
``xen-hotplug savefile convert``.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from hotplug.errors import HotplugError, error_text
from hotplug.restore import legacy
from hotplug.restore.forms import Form, Job, write
from hotplug.restore.image import Image
from hotplug.restore.output import Output
from hotplug.restore.pieces import Guest

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME = "the image"


def main(argv: Sequence[str]) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog=argv[0], description="Old save files into today's.")
    parser.add_argument("--in", dest="source", type=int, required=True, metavar="FD")
    parser.add_argument("--out", dest="target", type=int, required=True, metavar="FD")
    parser.add_argument("--width", choices=("32", "64"), help="is not believed")
    parser.add_argument("--guest", choices=("pv", "hvm"), required=True)
    parser.add_argument("--format", choices=("libxl",), required=True)
    words = parser.parse_args(argv[1:])
    guest = Guest.HVM if words.guest == "hvm" else Guest.PV
    try:
        output = Output(words.target, "the converted stream", shared=True)
        convert(Image(words.source, NAME), output, guest)
    except (HotplugError, OSError) as error:
        print(f"{argv[0]}: {error_text(error)}", file=sys.stderr)
        return 1
    return 0


def convert(image: Image, output: Output, guest: Guest) -> None:
    job = Job(image, output, Form.PLAIN)
    for piece in image.pieces(legacy.image(legacy.Choice(guest=guest), bare=False)):
        with image.place():
            write(job, piece)
    output.settle()


def run(argv: Sequence[str]) -> None:
    """The whole program."""
    sys.exit(main(argv))


if __name__ == "__main__":
    run(sys.argv)
