"""Processor, memory, pressure and single sensors, on planted files."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.sensing import files, machine, sensor
from device_agent.sensing.host import Memory, PressureStall, Processor, disk
from device_agent.sensing.parsing import reader
from device_agent.sensing.sampler import Sampler
from device_agent.sensing.sensor import Sensor
from firmware_profiles import Parse, Source, load
from firmware_profiles.profile import Profile

Put = Callable[[str, str], Path]
STAT = "cpu  {0} 0 0 {1} {2} 0 0 0 0 0\ncpu0 {0} 0 0 {1} {2} 0 0 0 0 0\nintr 1\n"


def test_waiting_for_a_disk_is_idle_and_the_time_between_counts(tmp_path: Path, put: Put) -> None:
    put("proc/stat", STAT.format(1000, 1000, 0))
    processor = Processor(tmp_path)
    put("proc/stat", STAT.format(1030, 1060, 10))
    assert processor.read() == (30.0, (30.0,))
    put("proc/stat", STAT.format(1030, 1160, 10))
    assert processor.read() == (0.0, (0.0,))
    processor.close()


def test_within_one_tick_the_last_figure_stands(tmp_path: Path, put: Put) -> None:
    put("proc/stat", STAT.format(100, 100, 0))
    processor = Processor(tmp_path)
    put("proc/stat", STAT.format(150, 150, 0))
    assert processor.read()[0] == 50.0
    assert processor.read()[0] == 50.0
    processor.close()


def test_a_core_may_go_and_come_back(tmp_path: Path, put: Put) -> None:
    both = "cpu  20 0 0 20 0 0 0 0\ncpu0 10 0 0 10 0 0 0 0\ncpu1 10 0 0 10 0 0 0 0\nintr 1\n"
    put("proc/stat", both)
    processor = Processor(tmp_path)
    assert processor.count == 2
    put("proc/stat", "cpu  30 0 0 20 0 0 0 0\ncpu0 20 0 0 10 0 0 0 0\nintr 1\n")
    assert processor.read() == (100.0, (100.0,))
    assert processor.count == 1
    put("proc/stat", both.replace("20", "40"))
    assert len(processor.read()[1]) == 2
    processor.close()


def test_a_machine_without_swap_has_none_of_it(tmp_path: Path, put: Put) -> None:
    put("proc/meminfo", "MemTotal: 100 kB\nMemAvailable: 60 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n")
    memory = Memory(tmp_path)
    state = memory.read()
    assert (state.total, state.available, state.swap_used) == (102400, 61440, None)
    memory.close()


@pytest.mark.parametrize("content", ["", "some", "some avg10=", "some avg10=x total=1"])
def test_pressure_that_is_switched_off_or_strange_is_none(
    tmp_path: Path, put: Put, content: str
) -> None:
    for name in ("cpu", "memory", "io"):
        put(f"proc/pressure/{name}", content)
    pressure = PressureStall(tmp_path)
    assert pressure.read() is None
    assert not pressure.found


def test_a_disk_has_a_size_and_a_folder_that_is_not_there_has_none(tmp_path: Path) -> None:
    state = disk(tmp_path)
    assert state
    assert 0 < state[1] <= state[0]
    assert disk(tmp_path / "nowhere") is None


def source(parse: Parse, **more: object) -> Source:
    return Source(path="/sys/value", parse=parse, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        (Parse.NUMBER, b"48312\n", 48312.0),
        (Parse.NUMBER, b"", None),
        (Parse.NUMBER, b"N/A", None),
        (Parse.NUMBER, b"nan", None),
        (Parse.NUMBER, b"inf", None),
        (Parse.LOAD_AT, b"12@300000000Hz\n", 12.0),
        (Parse.PERCENTS, b"NPU load:  Core0: 82%, Core1: 41%, Core2:  0%,", 41.0),
        (Parse.PERCENTS, b"NPU load:  7%\n", 7.0),
        (Parse.PERCENTS, b"off", None),
        (Parse.NONZERO, b"0", 0.0),
        (Parse.NONZERO, b"3", 1.0),
        (Parse.MASK, b"50000\n", 0.0),
        (Parse.MASK, b"0x50004\n", 1.0),
        (Parse.MASK, b"zz", None),
    ],
)
def test_texts_become_numbers(parse: Parse, text: bytes, expected: float | None) -> None:
    assert reader(source(parse, mask=0xF))(text, 0.0) == expected


def test_counters_need_two_looks_and_start_over_when_set_back() -> None:
    busy = reader(source(Parse.BUSY, scale=0.001))
    assert busy(b"1000000", 0) is None
    assert busy(b"1250000", 1000) == 25.0
    assert busy(b"1250000", 1000) is None  # no time has passed
    assert busy(b"10", 2000) is None  # the driver was loaded anew
    assert busy(b"500010", 3000) == 50.0
    idle = reader(source(Parse.IDLE))
    assert idle(b"100", 0) is None
    assert idle(b"1000", 1000) == pytest.approx(10.0)
    rises = reader(source(Parse.RISES))
    assert [rises(text, 0) for text in (b"3", b"3", b"4", b"", b"9", b"9")] == [
        None,
        0.0,
        1.0,
        None,
        None,
        0.0,
    ]


@given(st.sampled_from([one for one in Parse if one is not Parse.RAILS]), st.binary(max_size=200))
def test_any_text_is_a_number_or_none(parse: Parse, text: bytes) -> None:
    read = reader(source(parse, mask=1))
    for now_ms in (0, 500, 1000):
        value = read(text, now_ms)
        assert value is None or abs(value) < 1e30


def test_of_several_places_the_first_that_gives_a_value_counts(tmp_path: Path, put: Put) -> None:
    both = (Source(path="/sys/a", scale=0.001), Source(path="/sys/b"))
    put("sys/a", "-256000")
    put("sys/b", "41")
    one = Sensor(tmp_path, both, low=-60, high=200)
    assert one.read(0) == 41.0
    put("sys/a", "52000")
    assert one.read(1) == 52.0
    one.close()


def test_a_sensor_whose_driver_comes_late_is_found(tmp_path: Path, put: Put) -> None:
    late = Sensor(tmp_path, (Source(path="/sys/class/hwmon/hwmon*/temp1_input"),))
    assert not late.found
    assert late.read(0) is None
    put("sys/class/hwmon/hwmon3/temp1_input", "7")
    values = [late.read(at) for at in range(sensor.RESCAN_SAMPLES + 1)]
    assert values[0] is None
    assert values[-1] == 7.0
    late.close()


def test_rails_add_up_only_when_all_are_there(tmp_path: Path, put: Put) -> None:
    rails = Source(
        path="/sys/class/hwmon/hwmon*",
        parse=Parse.RAILS,
        where={"name": "ina3221"},
        rails=("A", "B"),
    )
    put("sys/class/hwmon/hwmon0/name", "ina3221\n")
    put("sys/class/hwmon/hwmon0/in1_label", "A\n")
    put("sys/class/hwmon/hwmon0/in1_input", "5000\n")
    put("sys/class/hwmon/hwmon0/curr1_input", "1000\n")
    assert not Sensor(tmp_path, (rails,)).found
    put("sys/class/hwmon/hwmon0/in2_label", "B\n")
    put("sys/class/hwmon/hwmon0/in2_input", "5000\n")
    current = put("sys/class/hwmon/hwmon0/curr2_input", "500\n")
    power = Sensor(tmp_path, (rails,))
    assert power.read(0) == pytest.approx(7.5)
    current.write_text("")
    assert power.read(1) is None
    power.close()


def test_a_file_that_only_root_reads_is_named_in_the_warning(
    tmp_path: Path, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("proc/stat", STAT.format(1, 1, 0))
    put("proc/meminfo", "MemTotal: 100 kB\nMemAvailable: 60 kB\n")
    put("sys/class/powercap/intel-rapl:0/energy_uj", "5")
    opened = files.KernelFile.__init__

    def refuse(self: files.KernelFile, path: Path, size: int = 4096) -> None:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        opened(self, path, size)

    monkeypatch.setattr(files.KernelFile, "__init__", refuse)
    sampler = Sampler(tmp_path, load("generic-x86-64"), now_ms=0)
    assert any("/sys/class/powercap/intel-rapl:0/energy_uj" in one for one in sampler.warnings)
    assert sampler.sample(1).power_w is None
    sampler.close()


def test_between_whole_samples_only_the_processor_is_read(tmp_path: Path, put: Put) -> None:
    put("proc/stat", STAT.format(0, 0, 0))
    put("proc/meminfo", "MemTotal: 100 kB\nMemAvailable: 60 kB\n")
    sampler = Sampler(tmp_path, load("generic-x86-64"), now_ms=0)
    before = sampler.sample(500)
    put("proc/meminfo", "MemTotal: 100 kB\nMemAvailable: 20 kB\n")
    put("proc/stat", STAT.format(300, 100, 0))
    between = sampler.sample_processor(550)
    assert (between.sampled_ms, between.memory_available_bytes) == (550, 60 << 10)
    assert between.cpu_percent > before.cpu_percent
    assert len(between.cores_percent) == len(before.cores_percent)
    after = sampler.sample(1000)
    assert (after.memory_available_bytes, after.cpu_percent) == (20 << 10, between.cpu_percent)
    sampler.close()


def test_a_machine_without_proc_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="stat"):
        Sampler(tmp_path, load("generic-x86-64"), now_ms=0)


def test_what_the_machine_is_called(tmp_path: Path, put: Put) -> None:
    put("etc/os-release", 'ID=debian\nPRETTY_NAME="Debian GNU/Linux 12"\n')
    put("proc/sys/kernel/osrelease", "6.6.31-rpi\n")
    put(machine.BOOT_ID, "abc\n")
    assert machine.os_name(tmp_path) == "Debian GNU/Linux 12 (6.6.31-rpi)"
    assert machine.boot_id(tmp_path) == "abc"
    assert machine.os_name(tmp_path / "nowhere") == "Linux"


def test_the_live_machine_is_read() -> None:
    profile: Profile = load("generic-x86-64")
    sampler = Sampler(Path("/"), profile, now_ms=0)
    try:
        report = sampler.sample(1000)
        inventory = sampler.inventory()
    finally:
        sampler.close()
    assert 0 <= report.cpu_percent <= 100
    assert len(report.cores_percent) == inventory.cpu_count
    total = report.memory_used_bytes + report.memory_available_bytes
    assert total == inventory.memory_bytes > 0
    assert report.disk_free_bytes
