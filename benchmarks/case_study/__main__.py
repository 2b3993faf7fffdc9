"""Run the case study: three cases, five ways, real arrivals."""

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from benchmarks.case_study import arrivals, draw, native, tables
from benchmarks.case_study.measure import Run
from benchmarks.case_study.ways import BASES, CASES, CORES, WAYS, Way, missing, stand
from benchmarks.harness.processes import ROOT, module
from benchmarks.harness.report import RESULTS, Report, options, progress

INPUTS: Final = {"plates": 24, "traffic": 24, "surround": 1}
LOAD_SHARE: Final = 0.6
"""Of the processor, which the best of the ways without a platform takes at the told rate."""
TRACES: Final = ("traffic", "azure")
SPEEDS: Final = (1, 10, 60)
HEADLINE_SPEED: Final = 60
HEADLINE: Final = ("traffic", HEADLINE_SPEED)
SECONDS: Final = 16.0
QUICK_SECONDS: Final = 8.0
CALIBRATION: Final = {"plates": 8, "traffic": 12, "surround": 8}
WARM_UP: Final = 3
ENOUGH: Final = 6
"""Requests that a run should have: at slow speeds it lasts longer for them..."""
LONGER: Final = 4
"""... this many times at most."""
SEED: Final = 1
INPUTS_TIMEOUT_S: Final = 300
DATA: Final = ROOT.parent / "shared" / "data"
SPEEDS_FILE: Final = DATA / "traffic" / "los_speed.csv"
AZURE_FILE: Final = DATA / "workload" / "AzureLLMInferenceTrace_code.csv"
LATENCY_CUT: Final = 59.0
MEMORY_CUT: Final = 20.0
POOL_LATENCY: Final = 1.15
POOL_MEMORY: Final = 0.6
KEEPING: Final = ("wasm-resident", "pool")
"""Ways that are warm as ours is: no bar, and told beside it."""

Key = tuple[str, str, str, int]
"""Case, way, trace, speed."""


class Study:
    """What was asked for, and what was found so far."""

    def __init__(self, asked: Any, folder: Path) -> None:
        self._asked = asked
        self.seconds: float = QUICK_SECONDS if asked.quick else asked.seconds
        self._native = folder / "native"
        self._folder = folder
        native.make(self._native)
        with SPEEDS_FILE.open(encoding="utf-8") as file:
            next(file)
            rows = [[float(one) for one in line.split(",")] for line in file]
        self._densities = arrivals.density(rows)
        self._azure = arrivals.azure(AZURE_FILE)
        self.rates: dict[str, float] = {}
        self.cpu_ms: dict[tuple[str, str], float] = {}
        self.runs: dict[Key, Run] = {}
        self.missing: dict[str, str] = {}
        self.ways: list[Way] = []
        for way in WAYS.values():
            why = missing(way)
            if why:
                self.missing[way.name] = why
            elif not asked.ways or way.name in asked.ways:
                self.ways.append(way)

    async def case(self, case: str) -> None:
        """Find the rate of a case, then run every way."""
        inputs = self._folder / case
        inputs.mkdir()
        self._prepare(case, inputs)
        bases = [WAYS[name] for name in BASES if name not in self.missing]
        for way in bases:
            progress(f"{case}: what a request takes, {way.name}")
            async with stand(way, case, inputs, self._native) as one:
                await one.ask(WARM_UP, 0)
                self.cpu_ms[case, way.name] = await one.cost_ms(CALIBRATION[case])
        best_ms = min(self.cpu_ms[case, way.name] for way in bases)
        self.rates[case] = LOAD_SHARE * CORES * 1000 / best_ms
        for way in self.ways:
            if case in way.cases:
                for loads in self._loads():
                    await self._way(way, case, inputs, loads)

    async def _way(self, way: Way, case: str, inputs: Path, loads: list[tuple[str, int]]) -> None:
        """Bring a way up and run it under some loads, one after another."""
        async with stand(way, case, inputs, self._native) as one:
            await one.ask(WARM_UP, 0)
            await asyncio.sleep(way.settle_s)
            for trace, speed in loads:
                due, seconds = self._due(trace, speed, self.rates[case])
                told = f"{len(due)} requests in {seconds:.0f} s"
                progress(f"{case}: {way.name}, {trace} at {speed}x, {told}")
                run = await one.run(due, seconds)
                self.runs[case, way.name, trace, speed] = run
                for failure in {one.failure for one in run.answers if one.failure}:
                    progress(f"failed: {failure}")

    def _loads(self) -> list[list[tuple[str, int]]]:
        """Return the loads that one start of a way may have: what is too much leaves a backlog."""
        if not self._asked.all:
            return [[HEADLINE]]
        slow = [(trace, speed) for speed in SPEEDS[:-1] for trace in TRACES]
        return [slow, *([(trace, HEADLINE_SPEED)] for trace in TRACES)]

    def _due(self, trace: str, speed: int, rate_per_s: float) -> tuple[list[float], float]:
        """Return when requests are due, and how long the run lasts, s.

        The told rate is that of the fastest speed; at the others it is less, and the run longer.
        """
        rate_per_s *= speed / HEADLINE_SPEED
        seconds = min(max(self.seconds, ENOUGH / rate_per_s), LONGER * self.seconds)
        if trace == "traffic":
            due = arrivals.traffic(self._densities, rate_per_s, speed, seconds, SEED)
        else:
            due = arrivals.thinned(self._azure, rate_per_s, speed, seconds, SEED)
        return due, seconds

    def _prepare(self, case: str, inputs: Path) -> None:
        progress(f"{case}: requests and the answers of the reference")
        command = module("benchmarks.programs.case_inputs", case, str(INPUTS[case]), str(inputs))
        subprocess.run(command, cwd=ROOT, check=True, timeout=INPUTS_TIMEOUT_S)


def tell(report: Report, study: Study) -> None:
    """Take the figures in; those of the headline with their bounds."""
    for (case, way, trace, speed), run in study.runs.items():
        for name, value in run.figures().items():
            report.figure(f"{case}_{way}_{trace}_{speed}x_{name}", value)
    for case, rate_per_s in study.rates.items():
        report.figure(f"{case}_rate_per_s", rate_per_s)
    for (case, way), cpu_ms in study.cpu_ms.items():
        report.figure(f"{case}_{way}_cpu_ms", cpu_ms)
    for name, (value, bound, least) in headline(study.runs).items():
        report.figure(name, value, bound, least=least)
    for name, (latency, memory) in beside(study.runs).items():
        where = name.replace(" / ", "_to_")
        report.figure(f"{where}_latency_ratio", latency)
        report.figure(f"{where}_memory_ratio", memory)
    for way, why in study.missing.items():
        report.note(f"{way} left out: {why}")


def headline(runs: dict[Key, Run]) -> dict[str, tuple[float, float, bool]]:
    """Return the figures that are held against a bound: value, bound, whether it is a least one."""
    told: dict[str, tuple[float, float, bool]] = {}
    latency_cuts, memory_cuts = [], []
    for case in CASES:
        found = {
            way: run
            for (one, way, *load), run in runs.items()
            if one == case and load == [*HEADLINE]
        }
        bases = [run for way, run in found.items() if way in BASES]
        ours = found.get("ours")
        if ours is None or not bases:
            continue
        best_ms = min(run.mean_ms() for run in bases)
        leanest_mb = min(run.memory_mean_mb() for run in bases)
        latency_cuts.append(100 * (1 - ours.mean_ms() / best_ms))
        memory_cuts.append(100 * (1 - ours.memory_mean_mb() / leanest_mb))
        told[f"{case}_latency_cut_percent"] = (latency_cuts[-1], LATENCY_CUT, True)
        told[f"{case}_memory_cut_percent"] = (memory_cuts[-1], MEMORY_CUT, True)
        pool = found.get("pool")
        if case == "plates" and pool is not None:
            ratio = ours.mean_ms() / pool.mean_ms()
            told["warm_pool_latency_ratio"] = (ratio, POOL_LATENCY, False)
            ratio = ours.memory_mean_mb() / pool.memory_mean_mb()
            told["warm_pool_memory_ratio"] = (ratio, POOL_MEMORY, False)
    if latency_cuts:
        told["latency_cut_percent_min"] = (min(latency_cuts), LATENCY_CUT, True)
        told["memory_cut_percent_min"] = (min(memory_cuts), MEMORY_CUT, True)
    return told


def beside(runs: dict[Key, Run]) -> dict[str, tuple[float, float]]:
    """Return how ours stands to what keeps its models too: latency and memory, as shares."""
    told = {}
    for (case, way, *load), run in runs.items():
        ours = runs.get((case, "ours", *HEADLINE))
        if way in KEEPING and load == [*HEADLINE] and ours is not None:
            told[f"{case} / {way}"] = (
                ours.mean_ms() / run.mean_ms(),
                ours.memory_mean_mb() / run.memory_mean_mb(),
            )
    return told


async def main() -> None:
    """Run the benchmark."""
    parser = options("case_study", __doc__ or "")
    parser.add_argument("cases", nargs="*", help="which; without any, all")
    parser.add_argument("--ways", nargs="*", help="which; without any, all")
    parser.add_argument("--all", action="store_true", help="every speed and both traces")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each run")
    parser.add_argument("--docs", action="store_true", help="renew docs/casestudy.md")
    asked = parser.parse_args()
    unknown = set(asked.cases) - set(CASES) | set(asked.ways or ()) - set(WAYS)
    if unknown:
        sys.exit(f"case_study: there is no {', '.join(unknown)}")
    if not SPEEDS_FILE.is_file():
        sys.exit(f"case_study: {SPEEDS_FILE} is not there: this benchmark reads real data")
    report = Report("case_study")
    with tempfile.TemporaryDirectory(prefix="tona-study-") as folder:
        study = Study(asked, Path(folder))
        for case in asked.cases or CASES:
            try:
                await study.case(case)
            except RuntimeError as broken:
                # What the other cases have given is not to be lost for it.
                progress(f"{case} broke off: {broken}")
                report.note(f"{case} broke off: {str(broken)[-200:]}")
    tell(report, study)
    first = {key: run for key, run in study.runs.items() if key[2:] == HEADLINE}
    told = f"{study.seconds:g} s for each run, {CORES} cores.\n\n"
    told += tables.write(first, study.rates, study.cpu_ms, headline(first), beside(first))
    every = tables.rows(study.runs)
    print(told, every if asked.all else "", sep="\n")
    report.close()
    raw = {
        "/".join(map(str, key)): {"answers": run.answers, "memory": run.memory}
        for key, run in study.runs.items()
    }
    path = RESULTS / "case_study_runs.json"
    path.write_text(json.dumps(raw) + "\n", encoding="utf-8")
    (RESULTS / "case_study.md").write_text(f"{told}\n{every}", encoding="utf-8")
    draw.pictures(study.runs, RESULTS)
    if asked.docs:
        tables.renew(told, every if asked.all else "")
        draw.pictures(first, tables.PICTURES)


if __name__ == "__main__":
    asyncio.run(main())
