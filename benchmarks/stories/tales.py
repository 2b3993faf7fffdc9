"""The tales: a service, the nodes it lives on, a cause, and which layer is to answer it how."""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.stories import work
from benchmarks.stories.stage import Stage, cores, on_core

SERVICE: Final = "watching"
SPAN_S: Final = 36.0
CAUSE_S: Final = 10.0
END_S: Final = 28.0
HEAVY_MS: Final = 40.0
LIGHT_MS: Final = 8.0
USERS: Final = 2
TARGET_MS: Final = 150.0
PICTURE_BYTES: Final = 48 * 1024
ANSWER_BYTES: Final = 56 * 1024
NARROW_MBIT_PER_S: Final = 2.5
Around = Callable[[list[str]], list[str]]


class Tale(NamedTuple):
    """One story."""

    name: str
    title: str
    cause: str
    layer: str
    """Who is to answer: `ts`, `ta` or `namo`."""
    nodes: Mapping[str, Around]
    document: Callable[["Cast"], dict[str, Any]]
    acts: Callable[[Stage], Awaitable[None]]
    users_apart: int = 0
    """So many users ask over a way that can get narrow; 0: everybody is on one machine."""


class Cast(NamedTuple):
    """The modules of the tales, as pushed."""

    heavy: dict[str, Any]
    light: dict[str, Any]


async def cast(one: Stage, turns_per_ms: float) -> Cast:
    """Push a heavy and a light module of the same ports."""
    pushed = []
    for name, cost_ms in (("heavy", HEAVY_MS), ("light", LIGHT_MS)):
        content = work.module(round(turns_per_ms * cost_ms))
        digest = await one.cell.put(content, f"{name}.wasm")
        assert digest == "sha256:" + hashlib.sha256(content).hexdigest()
        pushed.append({"digest": digest, "size_bytes": len(content)})
    return Cast(*pushed)


def _task(artifact: Mapping[str, Any], expected_ms: float, **more: Any) -> dict[str, Any]:
    port = {"dtype": "uint8", "shape": [-1]}
    return {
        "name": "look",
        "executor": "wasm",
        "artifact": dict(artifact),
        "expected_ms": expected_ms,
        "limits": {"memory_bytes": 8 << 20, "queue": 64},
        "inputs": {"x": {"from": "request.x", **port}},
        "outputs": {"y": port},
        **more,
    }


def _service(target_ms: float, task: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "name": SERVICE,
        "kind": "computing",
        "outputs": {"y": f"{task['name']}.y"},
        "tasks": [task],
        "spares": 0,
        "sla": {"zone": {"latency_ms": {"at_most": target_ms}}},
        **more,
    }


def silenced(document: dict[str, Any]) -> dict[str, Any]:
    """Return the same use case with its loops off: every change waits for a person."""
    services = []
    for service in document["services"]:
        sla = service["sla"]
        zone = {**sla["zone"], "autonomy": {"level": "manual"}}
        services.append({**service, "sla": {**sla, "zone": zone}})
    return {**document, "services": services}


def _heavy_with_light(cast: Cast) -> dict[str, Any]:
    light = {
        "name": "light",
        "artifact": dict(cast.light),
        "accuracy_percent": 91.0,
        "expected_ms": LIGHT_MS,
    }
    leeway = {"variants": ["light"], "moves": False}
    task = _task(cast.heavy, HEAVY_MS, variants=[light], accuracy_percent=97.0, leeway=leeway)
    return {"name": SERVICE, "services": [_service(TARGET_MS, task)]}


def _workers(cast: Cast) -> dict[str, Any]:
    leeway = {"replicas_max": 2, "moves": False}
    task = _task(cast.heavy, HEAVY_MS, leeway=leeway)
    return {"name": SERVICE, "services": [_service(TARGET_MS, task)]}


def _packable(cast: Cast) -> dict[str, Any]:
    task = _task(cast.light, LIGHT_MS, leeway={"encodings": ["deflate"], "moves": False})
    return {"name": SERVICE, "services": [_service(TARGET_MS, task)]}


def _plain(cast: Cast) -> dict[str, Any]:
    task = _task(cast.heavy, HEAVY_MS, leeway={"moves": False})
    return {"name": SERVICE, "services": [_service(TARGET_MS, task)]}


def _two_ways(cast: Cast) -> dict[str, Any]:
    sharp = _task(cast.heavy, HEAVY_MS, accuracy_percent=97.0, leeway={"moves": False})
    coarse = {
        **_task(cast.light, LIGHT_MS, accuracy_percent=91.0, leeway={"moves": False}),
        "name": "glance",
    }
    other = {"name": "coarse", "outputs": {"y": "glance.y"}, "tasks": [coarse]}
    service = _service(TARGET_MS, sharp, alternatives=[other])
    return {"name": SERVICE, "services": [service]}


def _fed(cast: Cast) -> dict[str, Any]:
    leeway = {"rate_min_per_s": 4.0, "moves": False}
    task = _task(cast.heavy, HEAVY_MS, leeway=leeway)
    source = {
        "kind": "file",
        "name": "camera.raw",
        "nodes": ["node-1"],
        "rate_per_s": 16.0,
        "dtype": "uint8",
        "shape": [PICTURE_BYTES],
    }
    service = _service(TARGET_MS, task, sources={"x": source}, sinks={"y": "topic"})
    return {"name": SERVICE, "services": [service]}


def _asking(rate_per_s: float, cause_rate_per_s: float, burners: int) -> Any:
    async def acts(one: Stage) -> None:
        def rate() -> float:
            during = CAUSE_S <= one.at_s < END_S
            return cause_rate_per_s if during else rate_per_s

        async with one.users(SERVICE, b"\x05" * 1024, rate, USERS):
            await one.until(CAUSE_S)
            async with one.burning([await one.core_of_task()], burners):
                await one.until(END_S)
            await one.until(SPAN_S)

    return acts


async def _narrowing(one: Stage) -> None:
    island = one.island
    assert island is not None
    # Two bits of news in each byte.
    value = bytes(one & 0x30 for one in hashlib.shake_128(b"a picture").digest(ANSWER_BYTES))
    async with one.users(SERVICE, value, lambda: 2.0, USERS):
        await one.until(CAUSE_S)
        island.narrow(NARROW_MBIT_PER_S)
        await one.until(END_S)
        island.widen()
        await one.until(SPAN_S)


async def _feeding(one: Stage) -> None:
    await one.until(CAUSE_S)
    async with one.burning(cores()[:1], 2):
        await one.until(END_S)


def prepare_camera(folder: Path) -> None:
    """Put the picture that the fed tale's node reads where it looks for it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "camera.raw").write_bytes(bytes(at % 251 for at in range(PICTURE_BYTES)))


def tales() -> tuple[Tale, ...]:
    """Return the tales in the order of the layers that answer."""
    first, second = on_core(cores()[0]), on_core(cores()[-1])
    return (
        Tale(
            "algorithm",
            "Algorithm: another granted variant",
            "two strangers' programs on the node's core",
            "ts",
            {"node-1": first},
            _heavy_with_light,
            _asking(4, 4, 2),
        ),
        Tale(
            "computing",
            "Computing: a second worker",
            "three times as many requests",
            "ts",
            {"node-1": list},
            _workers,
            _asking(3, 10, 0),
        ),
        Tale(
            "connection",
            "Connection: packed answers",
            f"the node's link carries {NARROW_MBIT_PER_S:g} Mbit/s",
            "ts",
            {"node-1": list},
            _packable,
            _narrowing,
            USERS,
        ),
        Tale(
            "data",
            "Data: a slower source",
            "two strangers' programs on the node's core",
            "ts",
            {"node-1": first},
            _fed,
            _feeding,
        ),
        Tale(
            "anchor",
            "Task Anchor: another node than the envelope had",
            "two strangers' programs on the node's core",
            "ta",
            {"node-1": first, "node-2": second},
            _plain,
            _asking(4, 4, 2),
        ),
        Tale(
            "namo",
            "NAMO: another decomposition",
            "two strangers' programs on the only node's core",
            "namo",
            {"node-1": first},
            _two_ways,
            _asking(4, 4, 2),
        ),
    )
