"""Calibrations: a program is measured beside the tasks of a node and before none of them."""

from typing import Any

import pytest
from device_harness import INVENTORY, MIB, NODE, SimNode, assign, manifest, of
from device_world import Agent, Peer, Store
from msgspec import structs
from test_device_daemon import echo_task

from device_agent.core import commands, events
from device_agent.core.calibrations import WAITING_MAX
from protocols.manifest import ArtifactRef, Dtype, ExecutorKind, Manifest, Port
from protocols.messages import Birth, Drain
from protocols.messages.calibration import Calibrate, Calibrated, CalibrationInput, Measured
from protocols.messages.quality import Tune, Tuning, Warmth
from protocols.messages.task import Deviceless


def asked(number: str = "1", memory_mib: int = 64, **more: Any) -> Calibrate:
    return Calibrate(number, "ta", NODE, "t", manifest(memory_mib=memory_mib), **more)


def found(number: str = "1") -> events.CalibrationEnded:
    return events.CalibrationEnded(
        Calibrated(number, "ta", NODE, (Measured(3, 1.5),), 9.0, 2.0, 4096)
    )


@pytest.fixture
def node() -> SimNode:
    made = SimNode()
    made.join()
    return made


def told(said: list[Any]) -> list[Calibrated]:
    return of(Calibrated, said)


def test_one_calibration_runs_at_a_time_and_what_it_finds_is_told(node: SimNode) -> None:
    (run,) = of(commands.RunCalibration, node.hear(asked("1")))
    assert (run.asked.number, run.urls) == ("1", ("http://127.0.0.1:1",))
    assert not node.hear(asked("2"))
    assert not node.hear(asked("2")), "asked twice is asked once"
    said = node.tell(found("1"))
    assert [one.number for one in told(said)] == ["1"]
    assert [one.asked.number for one in of(commands.RunCalibration, said)] == ["2"]
    assert not told(node.tell(found("9"))), "nobody asked for it"


def test_what_cannot_be_measured_here_is_refused_with_the_reason(node: SimNode) -> None:
    container = structs.replace(manifest(), kind=ExecutorKind.CONTAINER)
    (first,) = told(node.hear(structs.replace(asked(), manifest=container)))
    assert (first.refused, first.passing) == ("it has no container executor", False)
    onnx = structs.replace(manifest(), kind=ExecutorKind.ONNX)
    gpu = structs.replace(asked(provider="CUDAExecutionProvider"), manifest=onnx)
    (second,) = told(node.hear(gpu))
    assert second.refused == "its ONNX Runtime has no CUDAExecutionProvider"
    node.hear(asked("0"))
    for number in range(WAITING_MAX):
        assert not told(node.hear(asked(f"w{number}")))
    (last,) = told(node.hear(asked("more")))
    assert last.passing


def test_a_calibration_takes_only_the_room_that_tasks_leave() -> None:
    node = SimNode(inventory=structs.replace(INVENTORY, task_memory_bytes=128 * MIB))
    node.join()
    node.hear(assign(of=manifest("a", memory_mib=80)))
    (refused,) = told(node.hear(asked(memory_mib=64)))
    assert refused.refused == "it has 48 MiB of task memory left, a calibration asks for 64 MiB"
    assert refused.passing
    assert of(commands.RunCalibration, node.hear(asked("2", memory_mib=40)))
    said = node.hear(assign("u", of=manifest("b", memory_mib=40)))
    assert of(commands.EndCalibration, said), "a task needs its room"
    assert of(commands.StartInstance, said), "and gets it"


def test_a_node_that_is_emptied_measures_nothing(node: SimNode) -> None:
    node.hear(asked("1"))
    node.hear(asked("2"))
    said = node.hear(Drain("moved"))
    assert of(commands.EndCalibration, said) == [commands.EndCalibration("moved")]
    assert [(one.number, one.refused) for one in told(said)] == [("2", "moved")]
    ended = Calibrated("1", "ta", NODE, refused="moved", passing=True)
    assert [one.number for one in told(node.tell(events.CalibrationEnded(ended)))] == ["1"]
    assert [one.refused for one in told(node.hear(asked("3")))] == ["moved"]


def warm(warmth: Warmth, number: int = 0) -> Any:
    tuning = Tuning(warmth=warmth)
    if number:
        return Tune("t", 1, number, tuning)
    return structs.replace(assign(), deviceless=Deviceless(500), tuning=tuning)


def test_what_stays_of_a_resting_instance_is_what_was_chosen(node: SimNode) -> None:
    node.hear(warm(Warmth.PROCESS))
    (rest,) = of(commands.RestInstance, node.after(501))
    assert rest.keep
    assert not node.hear(warm(Warmth.PROCESS, 1))[:-1], "nothing but the status"
    assert of(commands.WakeInstance, node.hear(warm(Warmth.INSTANCE, 2)))
    assert not of(commands.RestInstance, node.after(100_000)), "it stays"
    node.hear(warm(Warmth.FORM, 3))
    (rest,) = of(commands.RestInstance, node.after(501))
    assert not rest.keep


async def test_a_real_node_measures_a_program_that_it_does_not_hold(
    agent: Agent, scheduler: Peer, store: Store
) -> None:
    task = echo_task(store)
    await agent.start()
    await scheduler.expect(Birth)
    sample = bytes(range(200))
    ref = ArtifactRef(store.put(sample), len(sample))
    sizes = (16, 4096, 500_000)
    runs = tuple((CalibrationInput("x", Dtype.UINT8, (size,)),) for size in sizes)
    runs += ((CalibrationInput("x", Dtype.UINT8, (200,), ref),),)
    scheduler.command(Calibrate("a", "ta", NODE, "echo", task.manifest, "", runs))
    first = await scheduler.expect(Calibrated)
    assert first.refused == ""
    assert {one.input_bytes for one in first.runs} >= {16, 200, 4096}
    assert all(one.run_ms > 0 for one in first.runs)
    assert first.start_ms is not None
    assert first.wake_ms is not None
    assert first.memory_bytes

    broken = Manifest(
        ExecutorKind.WASM,
        ArtifactRef(store.put(b"no module"), 9),
        (Port("x", Dtype.UINT8, (-1,)),),
        (Port("y", Dtype.UINT8, (-1,)),),
    )
    scheduler.command(Calibrate("b", "ta", NODE, "echo", broken, "", runs[:1]))
    second = await scheduler.expect(Calibrated, lambda one: one.number == "b")
    assert second.refused
    assert not second.passing
    code, said = await agent.stop()
    assert (code, "Traceback" in said) == (0, False)
