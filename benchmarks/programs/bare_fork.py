"""The limit of a model from zero: a process with the session forks, the child runs and answers.

    python -m benchmarks.programs.bare_fork MODEL INPUT_NAME INPUT_FILE

The input is int32 of one row. Each line asked is one fork, its answer the milliseconds until the
child's output was read from a pipe.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import msgspec
import numpy as np
import onnxruntime

from benchmarks.harness.lines import say


def main() -> None:
    """Serve until our parent hangs up; one thread, for a fork copies no other."""
    model, name, given = sys.argv[1:]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    value = np.frombuffer(Path(given).read_bytes(), np.int32).reshape(1, -1)
    say({})
    for line in sys.stdin.buffer:
        msgspec.json.decode(line)
        say(_fork(session, {name: value}))


def _fork(session: Any, feeds: dict[str, Any]) -> dict[str, float]:
    began_ns = time.monotonic_ns()
    answer, child = os.pipe()
    pid = os.fork()
    if pid == 0:
        (found,) = session.run(None, feeds)
        os.write(child, found.tobytes())
        os._exit(0)
    os.close(child)
    while os.read(answer, 1 << 16):
        pass
    took_ms = (time.monotonic_ns() - began_ns) / 1e6
    os.close(answer)
    os.waitpid(pid, 0)
    return {"ms": took_ms}


if __name__ == "__main__":
    main()
