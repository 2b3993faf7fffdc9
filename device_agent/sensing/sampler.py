"""The machine's load as one report: what there is, read once, in well under a millisecond."""

from pathlib import Path

from msgspec import structs

from device_agent.sensing import accelerators, machine
from device_agent.sensing.accelerators import COLDEST_C, HOTTEST_C
from device_agent.sensing.host import Memory, PressureStall, Processor, disk
from device_agent.sensing.nvml import Nvml, open_nvml
from device_agent.sensing.parsing import clamp
from device_agent.sensing.sensor import Sensor
from firmware_profiles import Profile
from protocols.messages.presence import ExecutorInfo, Inventory
from protocols.messages.sense import LoadReport


class Sampler:
    """Reads one machine as its profile says. Synchronous: a sample is a few preads.

    `root` is where /proc and /sys lie, `disk` a folder on the file system that fills up with
    artifacts. The clock is the caller's: monotonic milliseconds.
    """

    def __init__(
        self,
        root: Path,
        profile: Profile,
        *,
        now_ms: int,
        disk: Path | None = None,
        nvml: Nvml | None = None,
    ) -> None:
        """Find the sensors and take the first look. Raises OSError without a /proc.

        Constructing costs milliseconds (and more with NVML, which starts the driver).
        """
        self._root = root
        self._profile = profile
        self._disk = disk or root
        self._processor = Processor(root)
        self._memory = Memory(root)
        self._pressure = PressureStall(root)
        self._temperature = Sensor(root, profile.temperature, low=COLDEST_C, high=HOTTEST_C)
        self._throttled = Sensor(root, profile.throttled, union=True)
        self._power = Sensor(root, profile.power, sum)
        self._battery = Sensor(root, profile.battery, _mean)
        self._nvml, refusal = nvml, ""
        if nvml is None and any(one.nvml for one in profile.accelerators):
            self._nvml, refusal = open_nvml()
        self._accelerators, self._missing = accelerators.find(root, profile, self._nvml)
        self._cgroup = machine.has_memory_cgroup(root)
        self.warnings = tuple(filter(None, (refusal, *self._find_warnings())))
        """Sentences for a person, said once: what this machine lacks and how to have it."""
        self._last = self.sample(now_ms)

    def sample(self, now_ms: int, *, instances: int = 0, queue: int = 0) -> LoadReport:
        """Return the load now. Its cause is `heartbeat`; `reporting` decides whether it is sent."""
        cpu, cores = self._processor.read()
        memory = self._memory.read()
        throttled = self._throttled.read(now_ms)
        battery = self._battery.read(now_ms)
        space = disk(self._disk)
        self._last = LoadReport(
            sampled_ms=now_ms,
            cpu_percent=cpu,
            cores_percent=cores,
            memory_used_bytes=max(0, memory.total - memory.available),
            memory_available_bytes=memory.available,
            swap_used_bytes=memory.swap_used,
            disk_free_bytes=space[1] if space else None,
            pressure=self._pressure.read(),
            temperature_c=self._temperature.read(now_ms),
            throttled=None if throttled is None else throttled > 0,
            power_w=self._power.read(now_ms),
            battery_percent=None if battery is None else clamp(battery),
            accelerators=tuple([one.read(now_ms) for one in self._accelerators]),
            instances=instances,
            queue=queue,
        )
        return self._last

    def sample_processor(self, now_ms: int) -> LoadReport:
        """Return the load with only the processor read anew: the rest takes twice as long."""
        cpu, cores = self._processor.read()
        self._last = structs.replace(
            self._last, sampled_ms=now_ms, cpu_percent=cpu, cores_percent=cores
        )
        return self._last

    def inventory(self, executors: tuple[ExecutorInfo, ...] = ()) -> Inventory:
        """Return what this machine is, with the executors that run on it.

        Of an accelerator's providers those stay that an executor has: what can be reached now.
        """
        memory_bytes = self._memory.read().total
        providers = tuple(name for one in executors for name in one.providers)
        limits = self._profile.limits
        usable = min(memory_bytes, machine.memory_limit(self._root) or memory_bytes)
        space = disk(self._disk)
        return Inventory(
            profile=self._profile.name,
            arch=machine.arch(),
            os=machine.os_name(self._root),
            cpu_count=self._processor.count,
            memory_bytes=memory_bytes,
            disk_bytes=space[0] if space else 0,
            accelerators=tuple(
                accelerators.reachable(one.info, providers) for one in self._accelerators
            ),
            executors=executors,
            absent=self.absent(),
            task_memory_bytes=int(usable * limits.task_memory_share),
            max_instances=limits.max_instances,
        )

    def absent(self) -> tuple[str, ...]:
        """Name the sensors and kernel features that this machine does not have."""
        there = {
            "pressure": self._pressure.found,
            "memory-cgroup": self._cgroup,
            "swap": self._memory.read().swap_used is not None,
            "temperature": self._temperature.found,
            "throttled": self._throttled.found,
            "power": self._power.found,
            "battery": self._battery.found,
        }
        names = [name for name, found in there.items() if not found]
        names.extend(self._missing)
        for one in self._accelerators:
            names.extend(one.absent())
        return tuple(names)

    def close(self) -> None:
        """Close every file, and NVML."""
        self._processor.close()
        self._memory.close()
        self._pressure.close()
        for one in (self._temperature, self._throttled, self._power, self._battery):
            one.close()
        for accelerator in self._accelerators:
            accelerator.close()
        if self._nvml:
            self._nvml.close()

    def _find_warnings(self) -> list[str]:
        sentences = []
        if not self._pressure.found:
            sentences.append(
                "This kernel keeps no pressure stall information: reports go without it. "
                "Adding psi=1 to the kernel's command line may switch it on."
            )
        if not self._cgroup:
            sentences.append(
                "This kernel has no memory cgroup: tasks are held to their memory by other means. "
                "Adding cgroup_enable=memory to the kernel's command line may switch it on."
            )
        sensors = (self._temperature, self._throttled, self._power, self._battery)
        refused = [path for one in sensors for path in one.refused]
        refused.extend(path for one in self._accelerators for path in one.refused)
        if refused:
            sentences.append(
                f"Not readable for this user, so not reported: {', '.join(sorted(set(refused)))}."
            )
        return sentences


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
