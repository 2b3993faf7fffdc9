"""GPUs and NPUs: found where the profile says, read no faster than each of them likes."""

from pathlib import Path
from typing import Final

import msgspec

from device_agent.sensing.files import expand, fits
from device_agent.sensing.nvml import Gpu, GpuState, Nvml
from device_agent.sensing.parsing import clamp
from device_agent.sensing.sensor import Sensor
from firmware_profiles import Accelerator as Spec
from firmware_profiles import Profile
from protocols.messages.presence import Accelerator
from protocols.messages.sense import AcceleratorLoad

MAX_ACCELERATORS: Final = 16
TIMER_SLACK: Final = 0.9
"""A timer of the period itself may fire a little early and shall not miss every other reading."""
COLDEST_C: Final = -60.0
HOTTEST_C: Final = 200.0
"""A reading outside of these is a driver's way to say that a rail is off."""


class AcceleratorSensor:
    """One accelerator: what it is, and what it does."""

    def __init__(self, root: Path, index: int, spec: Spec, folder: Path, gpu: Gpu | None) -> None:
        def sensor(quantity: str) -> Sensor:
            return Sensor(root, getattr(spec, quantity), base=folder)

        self._gpu = gpu
        self._period_ms = spec.period_ms
        self._due_ms = float("-inf")
        self._load = sensor("load")
        self._memory = sensor("memory_used")
        self._power = sensor("power")
        self._temperature = Sensor(
            root, spec.temperature, base=folder, low=COLDEST_C, high=HOTTEST_C
        )
        self.label = f"{spec.kind}{index}"
        self.refused = tuple(
            path
            for one in (self._load, self._memory, self._power, self._temperature)
            for path in one.refused
        )
        self.last = AcceleratorLoad(index)
        total = sensor("memory_total")
        memory_bytes = _whole(total.read(0.0))
        total.close()
        self.info = Accelerator(
            kind=spec.kind,
            name=(gpu.name if gpu else "") or spec.name,
            memory_bytes=gpu.memory_bytes if gpu else memory_bytes,
            providers=spec.providers,
        )

    def read(self, now_ms: float) -> AcceleratorLoad:
        """Return its load now, or the last one while a new one would say nothing new."""
        if now_ms >= self._due_ms:
            self._due_ms = now_ms + self._period_ms * TIMER_SLACK
            state = self._gpu.read() if self._gpu else GpuState()
            load = _or(state.load_percent, self._load.read(now_ms))
            self.last = AcceleratorLoad(
                self.last.index,
                load_percent=None if load is None else clamp(load),
                memory_used_bytes=_whole(_or(state.memory_used_bytes, self._memory.read(now_ms))),
                temperature_c=_or(state.temperature_c, self._temperature.read(now_ms)),
                power_w=_or(state.power_w, self._power.read(now_ms)),
            )
        return self.last

    def absent(self) -> tuple[str, ...]:
        """Name what this accelerator cannot tell."""
        there = {
            "load": self._load.found or self.last.load_percent is not None,
            "memory": self._memory.found or self.last.memory_used_bytes is not None,
            "temperature": self._temperature.found or self.last.temperature_c is not None,
            "power": self._power.found or self.last.power_w is not None,
        }
        return tuple(f"{self.label}-{name}" for name, found in there.items() if not found)

    def close(self) -> None:
        """Close every file."""
        for one in (self._load, self._memory, self._power, self._temperature):
            one.close()


def find(
    root: Path, profile: Profile, nvml: Nvml | None
) -> tuple[list[AcceleratorSensor], list[str]]:
    """Return the accelerators that are there, and the names of those that should be and are not."""
    sensors: list[AcceleratorSensor] = []
    missing: list[str] = []
    for spec in profile.accelerators:
        folders = _folders(root, spec)
        if not folders and not spec.optional:
            missing.append(str(spec.kind))
        for folder in folders[: MAX_ACCELERATORS - len(sensors)]:
            gpu = nvml.gpu(folder.name) if nvml and spec.nvml else None
            sensors.append(AcceleratorSensor(root, len(sensors), spec, folder, gpu))
    return sensors, missing


def reachable(one: Accelerator, providers: tuple[str, ...]) -> Accelerator:
    """Return the accelerator with those of its providers that an executor here really has."""
    there = tuple(name for name in one.providers if name in providers)
    return msgspec.structs.replace(one, providers=there)


def _folders(root: Path, spec: Spec) -> list[Path]:
    for pattern in spec.at:
        found = [
            folder
            for folder in expand(root, pattern)
            if folder.is_dir() and fits(folder, spec.where)
        ]
        if found:
            return found
    return []


def _or(first: float | None, second: float | None) -> float | None:
    return second if first is None else first


def _whole(value: float | None) -> int | None:
    return None if value is None else max(0, int(value))
