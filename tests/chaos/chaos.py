"""Kill -9 of random processes of the CU+DUs+UEs deployment while requests and jobs flow.

    python tests/chaos/chaos.py --rounds 200 --seed 1 [--json]

Each round kills one process, sometimes two, drawn from the seed: device agents, executors, the CU,
a DU, a broker. The supervisor starts again what it keeps; the round is over when everything is
there again and both services have answered since. At the end every request sent must have been
answered once, with its own value, or refused with a reason, and every job accepted be done once.
"""

import argparse
import asyncio
import json
import logging
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
sys.path[:0] = [
    str(HERE.parent.parent),
    str(HERE.parent / "loop"),
    str(HERE.parent / "deployments"),
]

import httpx  # noqa: E402 - the path comes first
from chaos_load import Load  # noqa: E402 - as above
from deployment_world import World, running  # noqa: E402 - as above
from loop_cell import below, command_line  # noqa: E402 - as above

import tona  # noqa: E402 - as above

DEPLOYMENT: Final = "cu-dus-ues"
NODES: Final = 4
RECOVERY_S: Final = 90.0
"""A round that takes longer has failed."""
ANSWERS: Final = 3
"""Of each service after a kill, before the round is over."""
DOUBLE: Final = 0.25
"""Share of rounds that kill two at once."""
WORDS: Final = {"broker": "embedded_child", "executor": "device_agent.executors"}


def children(world: World, name: str, word: str) -> list[int]:
    return [pid for pid in below(world.deployed.pid(name)) if word in command_line(pid)]


def victims(world: World) -> dict[str, Callable[[], int | None]]:
    """Return what can be killed, by name; each gives the process id now, if there is one."""
    found: dict[str, Callable[[], int | None]] = {}

    def child(name: str, word: str, at: int = 0) -> Callable[[], int | None]:
        return lambda: next(iter(children(world, name, word)[at:]), None)

    for process in world.seen.processes:
        found[process.name] = lambda name=process.name: world.deployed.pid(name)
        found[f"broker of {process.name}"] = child(process.name, WORDS["broker"])
    for node in world.deployed.nodes:
        found[node] = lambda name=node: world.deployed.pid(name)
        found[f"zygote of {node}"] = child(node, "wasm_zygote")
        # Forked by the zygote, it has the same command line.
        found[f"executor of {node}"] = child(node, "wasm_zygote", 1)
    return found


class Chaos:
    """One run: the rounds, and what happened in each."""

    def __init__(self, world: World, load: Load, seed: int, rounds: int) -> None:
        self.world = world
        self.load = load
        self.rounds = rounds
        self.killed: Counter[str] = Counter()
        self.recoveries_s: list[float] = []
        self._random = random.Random(seed)
        self._victims = victims(world)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in range(1, self.rounds + 1):
            begin_s = loop.time()
            names = self._kill()
            try:
                async with asyncio.timeout(RECOVERY_S):
                    await self._recovered()
            except TimeoutError:
                raise SystemExit(
                    f"round {number}: no recovery within {RECOVERY_S:.0f} s from the end of "
                    f"{names}; {self.load.tally()}; logs in {self.world.deployed.logs}"
                ) from None
            took_s = loop.time() - begin_s
            self.recoveries_s.append(took_s)
            self._progress(number, names, took_s)

    def _kill(self) -> str:
        count = 2 if self._random.random() < DOUBLE else 1
        names: list[str] = []
        for name in self._random.sample(sorted(self._victims), len(self._victims)):
            pid = self._victims[name]()
            # An executor may be away, where a node runs no task now.
            if pid is not None and len(names) < count:
                os.kill(pid, signal.SIGKILL)
                names.append(name)
                self.killed[name.partition(" of ")[0] if " of " in name else name] += 1
        self.load.mark()
        return " and ".join(names)

    async def _recovered(self) -> None:
        """Wait until everything is there again and both services have answered since."""
        await self.load.answered(ANSWERS)
        await self.world.online(NODES)
        for process in self.world.seen.processes:
            await self._healthy(process.api_url)
        await self.world.until(
            "/v1/tasks", lambda tasks: all(one["state"] in RUNS for one in tasks)
        )

    async def _healthy(self, url: str) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=5) as http:
            while True:
                try:
                    if (await http.get("/healthz")).status_code == httpx.codes.OK:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.05)

    def _progress(self, number: int, names: str, took_s: float) -> None:
        tally = self.load.tally()
        end = "\r\x1b[K" if sys.stderr.isatty() else "\n"
        sys.stderr.write(
            f"round {number}/{self.rounds}: {names}; again well after {took_s:.1f} s; "
            f"{tally['sent']} sent, {tally['answered']} answered, {tally['refused']} refused, "
            f"{tally['jobs_done']} of {tally['jobs_accepted']} jobs done{end}"
        )
        sys.stderr.flush()


RUNS: Final = {"running", "ready", "degraded"}


async def chaos(folder: Path, seed: int, rounds: int, report: Callable[[Any], None]) -> bool:
    """Run it all; return whether the tally is exact."""
    async with running(folder, DEPLOYMENT, NODES) as world:
        cells: dict[str, list[str]] = {}
        for node, cell in world.deployed.nodes.items():
            cells.setdefault(cell, []).append(node)
        async with tona.connect(world.seen.api_url) as client:
            load = Load(client, world)
            for cell, nodes in cells.items():
                await load.submit(f"echo-{cell}", nodes)
            one = Chaos(world, load, seed, rounds)
            async with load:
                await load.answered(ANSWERS)
                await one.run()
            await load.settle()
        report(result(one, seed))
        return load.exact()


def result(one: Chaos, seed: int) -> dict[str, Any]:
    times = sorted(one.recoveries_s)
    return {
        "deployment": DEPLOYMENT,
        "seed": seed,
        "rounds": len(times),
        "killed": dict(one.killed),
        **one.load.tally(),
        "reasons": dict(one.load.reasons),
        "recovery_p50_s": round(times[len(times) // 2], 2) if times else None,
        "recovery_max_s": round(times[-1], 2) if times else None,
        "exact": one.load.exact(),
    }


def main() -> int:
    # Which connections broke is in the logs of the processes; here the rounds are told.
    logging.disable(logging.CRITICAL)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", type=Path, help="folder for data and logs; else a temporary one")
    asked = parser.parse_args()

    def report(told: dict[str, Any]) -> None:
        if asked.json:
            sys.stdout.write(json.dumps(told) + "\n")
            return
        for name, value in told.items():
            sys.stdout.write(f"{name:<18} {value}\n")

    async def run(folder: Path) -> bool:
        return await chaos(folder, asked.seed, asked.rounds, report)

    return 0 if _within(asked.keep, run) else 1


def _within(keep: Path | None, run: Callable[[Path], Awaitable[bool]]) -> bool:
    if keep is not None:
        return asyncio.run(run(keep.absolute()))  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory(prefix="tona-chaos-") as folder:
        return asyncio.run(run(Path(folder)))  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
