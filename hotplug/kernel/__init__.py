"""The kernel: Python types in, OSError out, no policy."""
