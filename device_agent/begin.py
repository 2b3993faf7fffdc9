"""Where the daemon's second stage begins: before msgspec looks for what it can do without."""

import sys


def main() -> int:
    """Run what was prepared; return the exit code."""
    # It is there where other programs need it, and takes 0.2 MB for nothing.
    sys.modules["typing_extensions"] = None  # type: ignore[assignment]
    from device_agent.run import main as run  # noqa: PLC0415 - imports msgspec

    return run(int(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(main())
