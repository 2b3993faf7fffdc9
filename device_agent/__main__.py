"""`python -m device_agent`: the node's first stage, which may be told to end from its beginning."""

import sys

from device_agent.told import put_off


def main() -> int:
    """Prepare the node and become its daemon; returns only an exit code of what went wrong."""
    put_off()
    from device_agent.preparation import prepare  # noqa: PLC0415 - slow to import

    return prepare()


if __name__ == "__main__":
    sys.exit(main())
