"""xen-hotplug: the work of Xen's hotplug scripts, done by one agent."""

__version__ = "0.1.0"
