"""Every board against a tree of its shape: which profile it gets, and what is read there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from device_agent.sensing.nvml import Nvml
from device_agent.sensing.sampler import Sampler
from firmware_profiles import detect, names
from protocols.messages.presence import ExecutorInfo
from protocols.messages.sense import AcceleratorLoad, LoadReport

ARCH = {
    "generic-x86-64": "x86_64",
    "x86-64-nvidia": "x86_64",
    "intel-core-ultra": "x86_64",
}


class NvmlError(Exception):
    pass


class FakeNvml:
    """The functions of pynvml that are used, for one GPU."""

    NVMLError = NvmlError
    NVML_TEMPERATURE_GPU = 0

    class _Pair:
        gpu, memory, used, total = 37, 12, 5 << 30, 48 << 30

    def __init__(self) -> None:
        self.lost = False
        self.open = 0

    def nvmlInit(self) -> None:  # noqa: N802 - the library names it
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802 - the library names it
        self.open -= 1

    def nvmlDeviceGetHandleByPciBusId(self, address: bytes) -> str:  # noqa: N802 - the library names it
        if address != b"0000:01:00.0":
            raise NvmlError
        return "handle"

    def __getattr__(self, name: str) -> Any:
        answers = {
            "nvmlDeviceGetName": "NVIDIA L40S",
            "nvmlDeviceGetMemoryInfo": self._Pair,
            "nvmlDeviceGetUtilizationRates": self._Pair,
            "nvmlDeviceGetTemperature": 55,
            "nvmlDeviceGetPowerUsage": 71_500,
        }

        def ask(*_: object) -> Any:
            if self.lost:
                raise NvmlError
            return answers[name]

        return ask


EXPECTED: dict[str, tuple[str, str, dict[str, Any], tuple[AcceleratorLoad, ...]]] = {
    "generic-x86-64": (
        "generic-x86-64",
        "architecture is x86_64",
        {"temperature_c": 52.0, "throttled": True, "power_w": 12.5, "battery_percent": 83.0},
        (AcceleratorLoad(0, load_percent=25.0),),
    ),
    "generic-aarch64": (
        "generic-aarch64",
        "architecture is aarch64",
        {"temperature_c": 44.5, "throttled": False, "power_w": None, "battery_percent": None},
        (),
    ),
    "x86-64-nvidia": (
        "x86-64-nvidia",
        "10de:26b9",
        {"temperature_c": 61.25, "throttled": None, "power_w": None, "battery_percent": None},
        (AcceleratorLoad(0, 37.0, 5 << 30, 55.0, 71.5),),
    ),
    "intel-core-ultra": (
        "intel-core-ultra",
        "8086:7d1d",
        {"temperature_c": 48.0, "throttled": False, "power_w": None, "battery_percent": None},
        (AcceleratorLoad(0, 40.0, 104857600), AcceleratorLoad(1, 10.0)),
    ),
    "raspberry-pi-4": (
        "raspberry-pi-4",
        "raspberrypi,4-model-b",
        {"temperature_c": 47.712, "throttled": True, "power_w": None, "pressure": None},
        (AcceleratorLoad(0, 40.0),),
    ),
    "raspberry-pi-5": (
        "raspberry-pi-5",
        "raspberrypi,5-model-b",
        {"temperature_c": 51.25, "throttled": True, "power_w": None, "pressure": None},
        (AcceleratorLoad(0, 5.0),),
    ),
    "jetson-orin": (
        "jetson-orin",
        "nvidia,tegra234",
        {"temperature_c": 46.218, "throttled": True, "power_w": 8.5},
        (AcceleratorLoad(0, 87.3, None, 43.5, 4.0),),
    ),
    "jetson-orin-nano": (
        "jetson-orin",
        "nvidia,tegra234",
        {"temperature_c": 50.343, "throttled": None, "power_w": 5.08},
        (AcceleratorLoad(0, 12.5),),
    ),
    "rk3588": (
        "rk3588",
        "rockchip,rk3588",
        {"temperature_c": 40.692, "throttled": True, "swap_used_bytes": None},
        (AcceleratorLoad(0, 41.0, None, 41.615), AcceleratorLoad(1, 12.0, None, 39.769)),
    ),
}


def watch(root: Path, name: str) -> Sampler:
    found = detect(root, ARCH.get(name, "aarch64"))
    return Sampler(root, found.profile, now_ms=0, nvml=Nvml(FakeNvml()))


def near(value: object) -> object:
    return pytest.approx(value) if isinstance(value, float) else value


def assert_accelerators(report: LoadReport, expected: tuple[AcceleratorLoad, ...]) -> None:
    assert len(report.accelerators) == len(expected)
    for got, want in zip(report.accelerators, expected, strict=True):
        for name in AcceleratorLoad.__struct_fields__:
            assert getattr(got, name) == near(getattr(want, name)), name


def test_every_profile_has_a_tree() -> None:
    assert {profile for profile, *_ in EXPECTED.values()} == set(names())


@pytest.mark.parametrize("name", EXPECTED)
def test_a_board_is_recognised_and_read(name: str, machine: Callable[[str], Any]) -> None:
    box = machine(name)
    profile, why, readings, accelerators = EXPECTED[name]
    found = detect(box.root, ARCH.get(name, "aarch64"))
    assert found.profile.name == profile
    assert why in found.why
    sampler = watch(box.root, name)
    try:
        box.age()
        report = sampler.sample(1000, instances=3, queue=2)
    finally:
        sampler.close()
    for field, value in readings.items():
        assert getattr(report, field) == near(value), field
    assert_accelerators(report, accelerators)
    assert report.cpu_percent == 50.0
    assert report.cores_percent == (100.0, 100.0, 0.0, 0.0)
    assert (report.sampled_ms, report.instances, report.queue) == (1000, 3, 2)
    assert report.memory_used_bytes + report.memory_available_bytes > 3 << 30


@pytest.mark.parametrize("name", EXPECTED)
def test_without_its_sensors_a_board_reports_none_and_says_what_is_absent(
    name: str, machine: Callable[[str], Any]
) -> None:
    box = machine(name)
    profile = detect(box.root, ARCH.get(name, "aarch64")).profile
    keep = ("proc/stat", "proc/meminfo")
    for file in sorted(path for path in box.root.rglob("*") if path.is_file()):
        if str(file.relative_to(box.root)) not in keep:
            file.unlink()
    for folder in sorted((p for p in box.root.rglob("*") if p.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
    sampler = Sampler(box.root, profile, now_ms=0, nvml=Nvml(FakeNvml()))
    try:
        report = sampler.sample(1000)
        absent = sampler.inventory().absent
    finally:
        sampler.close()
    for field in ("pressure", "temperature_c", "throttled", "power_w", "battery_percent"):
        assert getattr(report, field) is None, field
    assert report.accelerators == ()
    assert {"pressure", "memory-cgroup", "temperature", "throttled", "power", "battery"} <= {
        *absent
    }
    assert {str(one.kind) for one in profile.accelerators if not one.optional} <= {*absent}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_sensor_that_falls_silent_is_none_and_comes_back(
    name: str, machine: Callable[[str], Any]
) -> None:
    box = machine(name)
    sampler = watch(box.root, name)
    files = [
        path
        for path in (box.root / "sys").rglob("*")
        if path.name in {"temp", "temp1_input", "load", "in1_input", "gpu_stats"}
    ]
    contents = {file: file.read_text() for file in files}
    try:
        for file in files:
            file.write_text("")
        silent = sampler.sample(1000)
        assert silent.temperature_c is None
        for file, text in contents.items():
            file.write_text(text)
        assert sampler.sample(2000).temperature_c == near(EXPECTED[name][2]["temperature_c"])
    finally:
        sampler.close()


def test_raspberry_pi_os_says_once_what_is_missing_and_how_to_have_it(
    machine: Callable[[str], Any],
) -> None:
    sampler = watch(machine("raspberry-pi-4").root, "raspberry-pi-4")
    try:
        assert any("psi=1" in sentence for sentence in sampler.warnings)
        assert any("cgroup_enable=memory" in sentence for sentence in sampler.warnings)
        assert {"pressure", "memory-cgroup"} <= set(sampler.inventory().absent)
        assert "temperature" not in sampler.inventory().absent
    finally:
        sampler.close()


def test_the_inventory_has_the_profiles_limits_and_what_executors_reach(
    machine: Callable[[str], Any],
) -> None:
    box = machine("jetson-orin")
    sampler = watch(box.root, "jetson-orin")
    try:
        bare = sampler.inventory()
        onnx = ExecutorInfo("onnx", "1.23", ("CUDAExecutionProvider", "CPUExecutionProvider"))
        full = sampler.inventory((onnx,))
    finally:
        sampler.close()
    assert bare.accelerators[0].providers == ()
    assert full.accelerators[0].providers == ("CUDAExecutionProvider",)
    assert (full.accelerators[0].kind, full.accelerators[0].name) == ("gpu", "Orin GPU")
    assert full.executors == (onnx,)
    assert full.cpu_count == 4
    assert full.memory_bytes == 32_000_000 * 1024
    assert full.task_memory_bytes == int(0.6 * full.memory_bytes)
    assert full.max_instances == 16
    assert set(full.absent) == {"battery", "gpu0-memory"}


def test_a_containers_bound_counts_for_the_memory_of_tasks(
    machine: Callable[[str], Any],
) -> None:
    box = machine("rk3588")
    box.put("/sys/fs/cgroup/memory.max", "1000000000")
    sampler = watch(box.root, "rk3588")
    try:
        inventory = sampler.inventory()
    finally:
        sampler.close()
    assert inventory.memory_bytes == 8_000_000 * 1024
    assert inventory.task_memory_bytes == 500_000_000


def test_the_npu_is_not_asked_more_often_than_it_likes(machine: Callable[[str], Any]) -> None:
    box = machine("intel-core-ultra")
    sampler = watch(box.root, "intel-core-ultra")
    busy = "/sys/class/accel/accel0/device/npu_busy_time_us"
    try:
        box.age()
        assert sampler.sample(995).accelerators[0].load_percent == pytest.approx(40.2, abs=0.1)
        box.put(busy, "9999999")
        assert sampler.sample(1100).accelerators[0].load_percent == pytest.approx(40.2, abs=0.1)
        box.put(busy, "5400000")
        assert sampler.sample(1995).accelerators[0].load_percent == 0.0
    finally:
        sampler.close()


def test_a_gpu_that_fell_off_the_bus_is_none(machine: Callable[[str], Any]) -> None:
    box = machine("x86-64-nvidia")
    library = FakeNvml()
    profile = detect(box.root, "x86_64").profile
    sampler = Sampler(box.root, profile, now_ms=0, nvml=Nvml(library))
    assert sampler.inventory().accelerators[0].name == "NVIDIA L40S"
    assert sampler.inventory().accelerators[0].memory_bytes == 48 << 30
    library.lost = True
    assert sampler.sample(1000).accelerators == (AcceleratorLoad(0),)
    sampler.close()
    assert library.open == 0


def test_without_nvml_the_gpu_is_there_and_the_warning_says_what_to_do(
    machine: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    box = machine("x86-64-nvidia")
    sampler = Sampler(box.root, detect(box.root, "x86_64").profile, now_ms=0)
    try:
        assert any("tona-edge[gpu]" in sentence for sentence in sampler.warnings)
        assert sampler.sample(1000).accelerators == (AcceleratorLoad(0),)
        assert "gpu0-load" in sampler.inventory().absent
    finally:
        sampler.close()
