"""Prints by how many bytes a process grows when it loads a model and runs it.

Called as `python -m tona.variants.weigh MODEL INPUTS.npz THREADS`.
"""

import sys
from pathlib import Path

import numpy as np

from tona.variants.run import open_session


def pss_bytes() -> int:
    """Return the proportional set size of this process."""
    rollup = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    line = next(line for line in rollup.splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) * 1024


def main(model: str, inputs: str, threads: str) -> None:
    """Load, run, print."""
    with np.load(inputs, allow_pickle=False) as arrays:
        feeds = dict(arrays)
    before = pss_bytes()
    session = open_session(Path(model), int(threads))
    session.run(None, feeds)
    sys.stdout.write(f"{pss_bytes() - before}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
