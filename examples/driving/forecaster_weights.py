"""Write tables/forecaster.f32: the constants of forecaster.onnx, for its form without a runtime.

    python examples/driving/forecaster_weights.py

`guests/forecast.c` says in which order they stand.
"""

import sys
from typing import Final

import numpy as np
from reference import HERE, Array, proto_fields

MODEL: Final = HERE / "forecaster.onnx"
TABLE: Final = HERE / "tables" / "forecaster.f32"
ORDER: Final = (
    *("w_seen", "w_when", "w_second", "b_second", "w_last", "b_last"),
    *("b_nature", "near", "expected"),
)
GRAPH, INITIALIZER, NAME, RAW = 7, 5, 8, 9
"""Field numbers of ONNX: `ModelProto.graph`, `GraphProto.initializer`, of `TensorProto`."""


def constants() -> dict[str, Array]:
    """Return the model's constants as float32, flat, by name."""
    found = {}
    for number, part in proto_fields(memoryview(MODEL.read_bytes())):
        if number == GRAPH:
            for kind, tensor in proto_fields(part):
                if kind == INITIALIZER:
                    about = dict(proto_fields(tensor))
                    found[bytes(about[NAME]).decode()] = np.frombuffer(about[RAW], np.uint8)
    return {name: found[name].view(np.float32) for name in ORDER}


def main() -> int:
    """Write the table."""
    TABLE.write_bytes(np.concatenate([*constants().values()]).astype("<f4").tobytes())
    print(f"{TABLE.name}: {TABLE.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
