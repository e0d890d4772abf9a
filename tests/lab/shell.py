"""An interactive console of dom0 (``make lab-shell``): QEMU's serial line is the terminal.

Our scripts are installed and the agent runs. A guest's configuration is there to be started.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

from lab import hotplug
from lab.guests import Disk, Guest
from lab.image import BuildError, image
from lab.machine import LabError, Machine
from lab.releases import chosen

ENDS = "It ends with `poweroff -f', or with Ctrl-A X."


def main() -> int:
    try:
        with Machine(image(chosen()), interactive=True) as machine:
            hotplug.use_ours(machine)
            guest = Guest(machine, "guest", [Disk("xvda", "/tmp/disk.img")], address="10.99.0.2")
            guest.write_config()
            machine.do("truncate -s 64M /tmp/disk.img")
            print(f"\r\nThis is dom0. A guest: xl create -c {guest.config_path}\r\n{ENDS}\r")
            machine.process.wait()
    except (BuildError, LabError, AssertionError) as error:
        print(f"lab-shell: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
