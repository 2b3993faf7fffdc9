"""From a load or a link at a node to the corrected command at a node, beside a bare round trip."""

import asyncio
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.harness.bare import Requester, requester
from benchmarks.harness.cell import cell
from benchmarks.harness.machines import Island, Load, can_unshare
from benchmarks.harness.node import Observer, Spare
from benchmarks.harness.report import Report, median, options, percentile, progress
from benchmarks.harness.services import submit
from protocols.topics import Speaker

NODE: Final = "node-1"
SPARE: Final = "spare-1"
HIGH_PERCENT: Final = 97.0
LOW_PERCENT: Final = 5.0
SAMPLE_MS: Final = 50
LOAD_MOVES: Final = 200
LINK_MOVES: Final = 48
QUICK_MOVES: Final = 16
BARE_EACH: Final = 4
"""Bare round trips after each move."""
WAIT_S: Final = 5.0
SETTLE_S: Final = 0.02
RATIO_BOUND: Final = 4.0
REPORT_BYTES: Final = 200
COMMAND_BYTES: Final = 420
"""About what a load report and an assignment take on the wire."""
PROFILE: Final = """
name = "bench"
title = "a machine of the benchmark"
providers = ["CPUExecutionProvider"]
limits = { max_instances = 4096 }
match = { arch = ["x86_64", "aarch64"] }
"""


IDENTITIES: Final = {
    NODE: Speaker.NODE,
    SPARE: Speaker.NODE,
    "bare-responder": Speaker.NODE,
    "bare-requester": Speaker.CLIENT,
}


class Move(NamedTuple):
    """One correction, in milliseconds from its cause."""

    command_ms: float
    route_ms: float
    delay_ms: float
    """What lies before: until the sample was taken, or until the report was heard."""
    lasting_ms: float = 0.0
    """From the first report that showed the load to the one that was acted on."""


def _profile(folder: Path) -> str:
    path = folder / "profile.toml"
    path.write_text(PROFILE, encoding="utf-8")
    return f"--profile={path}"


async def _bare(one: Requester) -> list[float]:
    return [await one.ask(bytes(REPORT_BYTES)) / 1000 for _ in range(BARE_EACH)]


async def loads(moves: int) -> tuple[list[Move], list[float]]:
    """Have the node's processor busy, once for each task, and see the task move."""
    found: list[Move] = []
    bare: list[float] = []
    with tempfile.TemporaryDirectory(prefix="tona-bench-") as name:
        folder = Path(name)
        load, spare, observer = Load(folder, LOW_PERCENT), Spare(SPARE), Observer(NODE)
        async with (
            cell(folder, sample_ms=SAMPLE_MS) as one,
            spare.running(one),
            one.agent(NODE, load.around, [_profile(folder)]),
            observer.running(one),
            requester(one, "bare", COMMAND_BYTES, qos=0, answer_qos=1) as asking,
        ):
            progress(f"{moves} tasks, moved by load")
            await submit(one, moves, NODE)
            for _ in range(moves):
                move = await _load_move(load, spare, observer)
                if move is None:
                    break
                found.append(move)
                bare += await _bare(asking)
        load.close()
    return found, bare


async def _load_move(load: Load, spare: Spare, observer: Observer) -> Move | None:
    await asyncio.sleep(SETTLE_S + random.random() * SAMPLE_MS / 1000)  # noqa: S311 - any phase
    observer.loads.clear()
    while not spare.assigned.empty():
        spare.assigned.get_nowait()
    began_ns = load.set(HIGH_PERCENT)
    try:
        async with asyncio.timeout(WAIT_S):
            at_ns, assign = await spare.assigned.get()
    except TimeoutError:
        return None
    finally:
        load.set(LOW_PERCENT)
    high = [one for one in observer.loads if one.cpu_percent > 90]
    if not high:
        await observer.until(lambda: any(one.cpu_percent > 90 for one in observer.loads), WAIT_S)
        high = [one for one in observer.loads if one.cpu_percent > 90]
    first_ns = high[0].sampled_ms * 1_000_000
    # A load has to last before it moves anything: what counts is the report that was acted on.
    sampled_ns = max(one.sampled_ms * 1_000_000 for one in high if one.sampled_ms * 1e6 <= at_ns)
    service = assign.service
    await observer.until(lambda: observer.routes.get(service, 0) > at_ns, WAIT_S)
    await observer.until(lambda: observer.loads[-1].cpu_percent < 50, WAIT_S)
    return Move(
        (at_ns - sampled_ns) / 1e6,
        (observer.routes.get(service, at_ns) - sampled_ns) / 1e6,
        max(0.0, (first_ns - began_ns) / 1e6),
        (sampled_ns - first_ns) / 1e6,
    )


async def links(moves: int) -> tuple[list[Move], list[float]]:
    """Take the carrier from the node's link, once for each task, and see the task move."""
    found: list[Move] = []
    bare: list[float] = []
    island = Island()
    with island.standing(), tempfile.TemporaryDirectory(prefix="tona-bench-") as name:
        folder = Path(name)
        # Whatever else runs on this machine moves nothing: only the link does.
        load, spare, observer = Load(folder, LOW_PERCENT), Spare(SPARE), Observer(NODE)
        async with (
            cell(folder, trusted_host=island.host, identities=IDENTITIES) as one,
            spare.running(one),
            one.agent(
                NODE, lambda command: island.around(load.around(command)), [_profile(folder)]
            ),
            observer.running(one),
            requester(one, "bare", COMMAND_BYTES, qos=0, answer_qos=1) as asking,
            island.watched() as events,
        ):
            progress(f"{moves} tasks, moved by the loss of a carrier")
            await submit(one, moves, NODE)
            await observer.until(lambda: _interface(observer) == "cut0", WAIT_S)
            assert _interface(observer) == "cut0", f"the agent follows {_interface(observer)}"
            for _ in range(moves):
                move = await _link_move(island, events, spare, observer)
                if move is None:
                    break
                found.append(move)
                bare += await _bare(asking)
        load.close()
    return found, bare


def _interface(observer: Observer) -> str:
    return observer.links[-1][1].interface if observer.links else ""


async def _link_move(
    island: Island, events: asyncio.Queue[tuple[int, bool]], spare: Spare, observer: Observer
) -> Move | None:
    for queue in (events, spare.assigned):
        while not queue.empty():
            queue.get_nowait()
    observer.links.clear()
    await asyncio.to_thread(island.carrier, on=False)
    try:
        async with asyncio.timeout(WAIT_S):
            kernel_ns, carrier = await events.get()
            assert not carrier
            at_ns, _ = await spare.assigned.get()
    except TimeoutError:
        return None
    finally:
        await asyncio.to_thread(island.carrier, on=True)
    heard = [at for at, link in observer.links if not link.carrier]
    await observer.until(lambda: bool(observer.links) and observer.links[-1][1].carrier, WAIT_S)
    report_ms = (heard[0] - kernel_ns) / 1e6 if heard else 0.0
    return Move((at_ns - kernel_ns) / 1e6, 0.0, report_ms)


def _tell(report: Report, prefix: str, found: list[Move], bare: list[float]) -> None:
    commands = [one.command_ms for one in found]
    for share in (50, 99):
        ratio = percentile(commands, share) / percentile(bare, share)
        report.figure(f"{prefix}p{share}_ratio", ratio, RATIO_BOUND)
    for share in (50, 99):
        report.figure(f"{prefix}command_p{share}_ms", percentile(commands, share))
        report.figure(f"{prefix}bare_p{share}_ms", percentile(bare, share))
    report.figure(f"{prefix}moves_count", len(found))


async def main() -> None:
    """Run the benchmark."""
    asked = options("reaction", __doc__ or "").parse_args()
    report = Report("reaction")
    if can_unshare():
        found, bare = await loads(QUICK_MOVES if asked.quick else LOAD_MOVES)
        _tell(report, "", found, bare)
        report.figure("route_p50_ms", median([one.route_ms for one in found]))
        report.figure("sampling_delay_p50_ms", median([one.delay_ms for one in found]))
        report.figure("lasting_p50_ms", median([one.lasting_ms for one in found]))
        report.figure("sample_ms", SAMPLE_MS)
        report.note(
            "Load: from the last sample in an unchanged device agent before the command (its "
            "report's sampled_ms, to 1 ms) to the Assign at the spare, a node of the protocol "
            "alone in this process; embedded broker. route is until the new route is heard. The "
            "agent sees a /proc/stat of ours."
        )
        report.note(
            "Not in the figure: the sampling delay, from the change of the load to the first "
            "sample, half the sampling interval on the mean; and lasting, from there to the last "
            "sample: a load has to be reported high for 900 ms before it moves anything."
        )
    else:
        report.note("Load was not measured: this user may not bind a file over /proc/stat.")
    if os.geteuid() == 0 and can_unshare():
        found, bare = await links(QUICK_MOVES if asked.quick else LINK_MOVES)
        _tell(report, "link_", found, bare)
        report.figure("link_report_p50_ms", median([one.delay_ms for one in found]))
        report.note(
            "Link: from the kernel's word that a carrier is lost, as a bare listener in the same "
            "namespace has it, to the Assign at the spare; Mosquitto with TLS at every end, for "
            "the bare round trip too. The node's TCP has a second way: without one the report "
            "cannot leave, and silence speaks for the node."
        )
    else:
        report.note(
            "Links were not measured: a network namespace and a /proc/stat of one's own need root."
        )
    report.note(
        f"Bare: gmqtt at both ends, {REPORT_BYTES} bytes there, {COMMAND_BYTES} back, "
        f"{BARE_EACH} after each move."
    )
    report.close()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
