"""The reading chain in one process, without tona: the reference, and the limit in benchmarks.

    python examples/reading/local.py IMAGE...     prints FILE<TAB>TEXT for each image

Exit 1 when an image could not be read; why stands on the standard error output.
"""

import os
import sys
import time
from pathlib import Path
from typing import Final

import numpy as np
from chain import Chain, load
from guest import Array, Guest, GuestError

from protocols.manifest import ExecutorKind
from protocols.messages.hierarchy import TaskSpec

# The runtime reports usage over the network unless told not to, before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

REQUEST: Final = "request"


class Runner:
    """Every step of the chain, loaded once."""

    def __init__(self, chain: Chain | None = None, threads: int = 1) -> None:
        self.chain = chain or load()
        self.step_ms: dict[str, float] = {}
        """How long each step took in the last run."""
        self._manifests = {spec.step: spec.manifest for spec in self.chain.order.tasks}
        self._guests: dict[str, Guest] = {}
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._constants: dict[tuple[str, str], Array] = {}
        for spec in self.chain.order.tasks:
            self._load(spec, threads)

    def _load(self, spec: TaskSpec, threads: int) -> None:
        manifest = spec.manifest
        file = self.chain.files[manifest.artifact.digest]
        ports = {port.name: port for port in manifest.inputs}
        for constant in manifest.constants:
            data = self.chain.files[constant.artifact.digest].read_bytes()
            port = ports[constant.port]
            value = np.frombuffer(data, port.dtype).reshape(port.shape)
            self._constants[spec.step, constant.port] = value
        if manifest.kind is ExecutorKind.WASM:
            self._guests[spec.step] = Guest(file, manifest.limits.memory_bytes)
        else:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.enable_mem_pattern = False
            self._sessions[spec.step] = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )

    def run(self, request: dict[str, Array]) -> dict[str, Array]:
        """Run the chain on a client's inputs; returns the service's outputs. Raises GuestError."""
        values = self.values(request)
        return {
            edge.port: values[edge.source, edge.source_port] for edge in self.chain.order.outputs
        }

    def values(self, request: dict[str, Array]) -> dict[tuple[str, str], Array]:
        """Run the chain; returns every value by step and port. Raises GuestError."""
        values = {(REQUEST, port): array for port, array in request.items()}
        for spec in self.chain.order.tasks:
            started = time.perf_counter()
            values.update(self._step(spec, values))
            self.step_ms[spec.step] = (time.perf_counter() - started) * 1e3
        return values

    def used_bytes(self, name: str) -> int:
        """Return how large the memory of a Wasm step had grown in its last run."""
        return self._guests[name].used_bytes

    def _step(
        self, spec: TaskSpec, values: dict[tuple[str, str], Array]
    ) -> dict[tuple[str, str], Array]:
        named = {edge.port: values[edge.source, edge.source_port] for edge in spec.inputs}
        for constant in spec.manifest.constants:
            named[constant.port] = self._constants[spec.step, constant.port]
        given = self.step(spec.step, [named[port.name] for port in spec.manifest.inputs])
        ports = [(spec.step, port.name) for port in spec.manifest.outputs]
        return dict(zip(ports, given, strict=True))

    def step(self, name: str, inputs: list[Array]) -> list[Array]:
        """Run one step on tensors in manifest order. Raises GuestError."""
        manifest = self._manifests[name]
        if name in self._guests:
            return self._guests[name](inputs, len(manifest.outputs))
        named = {port.name: one for port, one in zip(manifest.inputs, inputs, strict=True)}
        given: list[Array] = self._sessions[name].run(None, named)
        return given

    def read(self, image: bytes) -> dict[str, Array]:
        """Read the text in an image file. Raises GuestError when it cannot be decoded."""
        return self.run({"file": np.frombuffer(image, np.uint8)})


def lines(outputs: dict[str, Array]) -> list[str]:
    """Return the lines of text in reading order."""
    text = outputs["text"].tobytes().decode()
    return text.split("\n") if text else []


def main(paths: list[str]) -> int:
    """Print each file with its text, the lines joined by spaces."""
    if not paths:
        print(__doc__, file=sys.stderr)
        return 2
    runner = Runner()
    failed = False
    for name in paths:
        try:
            outputs = runner.read(Path(name).read_bytes())
        except (GuestError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = True
        else:
            print(f"{name}\t{' '.join(lines(outputs))}", flush=True)
            found, kept = int(outputs["found"][0]), len(outputs["boxes"])
            if found > kept:
                print(f"{name}: only the first {kept} of {found} lines fit", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
