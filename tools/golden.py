"""Write the golden frames anew; run it only after appending a field, and read the difference."""

import runpy
import sys
from pathlib import Path

from protocols.codec import encode
from protocols.topics import INVOCATION_MAX_BYTES


def main() -> int:
    """Write `tests/protocols/golden.txt`: a name and the frame in hex on each line."""
    folder = Path(__file__).resolve().parent.parent / "tests" / "protocols"
    frames = runpy.run_path(str(folder / "test_protocols_codec.py"))["golden_frames"]()
    lines = [
        f"{name} {encode(one, INVOCATION_MAX_BYTES).hex()}\n"
        for name, one in sorted(frames.items())
    ]
    (folder / "golden.txt").write_text("".join(lines), encoding="ascii")
    print(f"{len(lines)} golden frames")
    return 0


if __name__ == "__main__":
    sys.exit(main())
