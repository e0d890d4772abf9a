"""An interactive console of dom0 (``make lab-shell``): QEMU's serial line is the terminal.

Our scripts are installed and the agent runs. ``poweroff -f`` in dom0, or Ctrl-A X, ends it.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])

from lab import hotplug
from lab.image import BuildError, image
from lab.machine import LabError, Machine
from lab.releases import chosen


def main() -> int:
    try:
        with Machine(image(chosen()), interactive=True) as machine:
            hotplug.use_ours(machine)
            print("\nThis is dom0. Guests: /srv/vmlinux, /srv/guest.gz. Ctrl-A X ends it.\r")
            machine.process.wait()
    except (BuildError, LabError, AssertionError) as error:
        print(f"lab-shell: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
