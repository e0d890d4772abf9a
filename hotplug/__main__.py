"""``python -m hotplug`` is the command ``xen-hotplug``."""

import sys

from hotplug.cli import main

sys.exit(main())
