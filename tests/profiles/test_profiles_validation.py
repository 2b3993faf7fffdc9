"""A user's own profile: everything wrong is said at once, with line and field."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firmware_profiles import load_file, names, select, validate
from firmware_profiles.catalog import BOARDS
from protocols.errors import UserError

GOOD = """\
base = "raspberry-pi-5"
name = "my-pi"

[limits]
max_instances = 2

[[power]]
path = "/sys/class/hwmon/hwmon*/power1_input"
where = { name = "ina219" }
scale = 1e-6
"""
BAD = """\
base = "raspberry-pi-5"
name = "my pi"
interpreter = "python3"
providers = ["Cuda", 4]

[limits]
max_instnaces = 4
task_memory_share = 3

[[temperature]]
path = "/etc/shadow"
scale = 0

[[temperature]]
pth = "/sys/x"
where = { type = 3 }

[[accelerator]]
kind = "tpu"
at = []
load = [{ path = "./../x", parse = "mask" }]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.toml"


@pytest.mark.parametrize("name", names())
def test_the_packages_own_profiles_are_valid(name: str) -> None:
    assert validate(BOARDS / f"{name}.toml") == []


def test_a_file_may_change_a_profile_of_the_package(file: Path) -> None:
    file.write_text(GOOD)
    assert validate(file) == []
    profile = load_file(file)
    assert profile.name == "my-pi"
    assert profile.limits.max_instances == 2
    assert profile.limits.task_memory_share == 0.5
    assert profile.power[0].where == {"name": "ina219"}
    assert profile.throttled
    found = select(str(file))
    assert found.profile == profile
    assert str(file) in found.why


def test_every_problem_is_named_with_its_line_and_field(file: Path) -> None:
    file.write_text(BAD)
    expected = {
        (2, "name", "letters"),
        (3, "interpreter", "absolute"),
        (4, "providers[0]", "Cuda"),
        (4, "providers[1]", "expected str, got int"),
        (7, "limits.max_instnaces", "did you mean max_instances?"),
        (8, "limits.task_memory_share", "0.95"),
        (11, "temperature[0].path", "/sys/"),
        (12, "temperature[0].scale", "other than 0"),
        (14, "temperature[1].path", "has to be given"),
        (15, "temperature[1].pth", "did you mean path?"),
        (16, "temperature[1].where", "expected str"),
        (18, "accelerator[0].name", "has to be given"),
        (19, "accelerator[0].kind", "gpu, npu"),
        (20, "accelerator[0].at", "at least one"),
        (21, "accelerator[0].load[0].path", ".."),
        (21, "accelerator[0].load[0].mask", "bit"),
    }
    problems = validate(file)
    for line, field, hint in expected:
        assert any(
            one.startswith(f"{file}:{line}: {field}: ") and hint in one for one in problems
        ), (line, field, hint, problems)
    assert len(problems) == len(expected)
    with pytest.raises(UserError) as caught:
        load_file(file)
    assert str(caught.value).splitlines() == problems


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"name = ", "is not TOML"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"", "name: has to be given"),
        (b'base = "rasberry-pi-5"', "did you mean raspberry-pi-5?"),
        (b"base = 3", "there is no profile 3"),
        (b"#" * (300 * 1024), "larger than"),
    ],
)
def test_a_file_that_is_no_profile_is_refused_in_a_sentence(
    file: Path, content: bytes, said: str
) -> None:
    file.write_bytes(content)
    assert any(said in one for one in validate(file))


def test_a_file_that_is_not_there_is_said(file: Path) -> None:
    assert validate(file) == [f"{file}: cannot be read: No such file or directory"]


SCALARS = st.sampled_from(
    ["3", "-1", '"x"', "[]", "[3]", "{}", "{ a = 1 }", "true", "1979-05-27", "[[1]]", "nan", "inf"]
)
KEYS = st.sampled_from(
    [
        *("name", "title", "providers", "match", "limits", "temperature", "accelerator", "base"),
        *("match.arch", "match.pci", "match.dmi", "limits.max_instances", "accelerators", "notes"),
    ]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.dictionaries(KEYS, SCALARS, max_size=6), st.booleans())
def test_whatever_a_file_says_the_answer_is_a_profile_or_sentences(
    file: Path, fields: dict[str, str], based: bool
) -> None:
    lines = [f"{key} = {value}" for key, value in fields.items()]
    file.write_text("\n".join([*(['base = "rk3588"'] if based else []), *lines]))
    problems = validate(file)
    if problems:
        with pytest.raises(UserError):
            load_file(file)
    else:
        assert load_file(file).name
