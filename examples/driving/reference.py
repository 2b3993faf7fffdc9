"""The loader and the reference runner of ../reading, for the use cases of this folder."""

import sys
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
sys.path.insert(0, str(HERE.parent / "reading"))

from chain import Chain, load, proto_fields  # noqa: E402 - found by the path above
from guest import Array, Guest, GuestError  # noqa: E402 - the same
from local import Runner  # noqa: E402 - the same

PLATES: Final = HERE / "plates.toml"
PLATES_TINY: Final = HERE / "plates_tiny.toml"
TRAFFIC: Final = HERE / "traffic.toml"
SURROUND: Final = HERE / "surround.toml"

__all__ = [
    "HERE", "PLATES", "PLATES_TINY", "SURROUND", "TRAFFIC",
    "Array", "Chain", "Guest", "GuestError", "Runner", "load", "proto_fields",
]  # fmt: skip
