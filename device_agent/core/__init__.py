"""The pure core of the daemon: assignments, sessions, outbox; no clock, no I/O."""
