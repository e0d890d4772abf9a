"""The daemon: order, deadlines, errors, journal."""
