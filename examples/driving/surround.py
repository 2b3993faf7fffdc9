"""The bird's-eye view of the four cameras as a picture to look at.

python examples/driving/surround.py FILE.png
"""

import struct
import sys
import zlib
from pathlib import Path

from material import surround_request
from reference import SURROUND, Array, Runner, load


def png(image: Array) -> bytes:
    """Encode uint8[h,w,3] as PNG."""
    height, width, _ = image.shape
    rows = b"".join(b"\0" + row.tobytes() for row in image)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def main(arguments: list[str]) -> int:
    """Write the picture."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    outputs = Runner(load(SURROUND)).run(surround_request())
    Path(arguments[0]).write_bytes(png(outputs["view"]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
