"""Where the daemon's second stage begins: before msgspec looks for what it can do without."""

import sys
from types import ModuleType
from typing import Any


def leave_out() -> None:
    """Spare what msgspec would load and no message needs."""
    # It is there where other programs need it, and takes 0.2 MB for nothing.
    absent: Any = None
    sys.modules["typing_extensions"] = absent
    # It asks for the type alone, for values that no message has; all of it takes 0.5 MB.
    decimal: Any = ModuleType("decimal")
    decimal.Decimal = type("Decimal", (), {})
    sys.modules["decimal"] = decimal


def main() -> int:
    """Run what was prepared; return the exit code."""
    leave_out()
    from device_agent.run import main as run  # noqa: PLC0415 - imports msgspec

    return run(int(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(main())
