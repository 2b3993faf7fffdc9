"""The requests of a case and what has to come back, as files of named tensors.

    python -m benchmarks.programs.case_inputs CASE COUNT FOLDER

N.in holds a request, N.out the answer of the reference runner, which knows no device agent.
"""

import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.harness.processes import ROOT
from benchmarks.programs.case_program import FLOAT32, INT32, UINT8, Tensors, write_tensors

sys.path.insert(0, str(ROOT / "examples" / "driving"))

import material
from reference import PLATES, SURROUND, TRAFFIC, Runner, load

NUMBERS: Final = {np.dtype("f4"): FLOAT32, np.dtype("u1"): UINT8, np.dtype("i4"): INT32}
FIRST_ROW: Final = 1623
"""Of the last fifth of the week, which no training saw."""


def requests(case: str, count: int) -> list[dict[str, Any]]:
    """Return so many requests, spread over the material."""
    if case == "plates":
        photos = material.photos()
        return [material.plates_request(one) for one in photos[:: max(1, len(photos) // count)]]
    if case == "traffic":
        table = material.speeds()
        rows = np.linspace(FIRST_ROW, len(table) - 1, count).astype(int)
        return [material.traffic_request(table, int(row)) for row in rows]
    return [material.surround_request()]


def tensors(values: dict[str, Any]) -> Tensors:
    """Return arrays as the frames take them."""
    return {
        name: (NUMBERS[value.dtype], value.shape, np.ascontiguousarray(value))
        for name, value in values.items()
    }


def main() -> None:
    """Write the files."""
    case, count, folder = sys.argv[1:]
    use_case = {"plates": PLATES, "traffic": TRAFFIC, "surround": SURROUND}[case]
    runner = Runner(load(use_case), threads=2)
    for number, request in enumerate(requests(case, int(count))):
        with Path(folder, f"{number}.in").open("wb") as file:
            write_tensors(file, tensors(request))
        with Path(folder, f"{number}.out").open("wb") as file:
            write_tensors(file, tensors(runner.run(request)))


if __name__ == "__main__":
    main()
