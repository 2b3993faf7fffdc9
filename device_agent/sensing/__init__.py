"""Sensing: what the machine and its links do, read from the kernel."""
