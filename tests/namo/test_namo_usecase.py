"""The document: what is accepted, and what a person is told about what is not."""

import json
import tomllib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.namo.lines import Path, json_lines, locate, toml_lines
from controller.namo.reader import MAX_PROBLEMS
from controller.namo.usecase import DocumentError, parse
from protocols.manifest import Dtype

DIGEST = "sha256:" + "ab" * 32

READING = f"""
name = "reading"
tenant = "default"

[[services]]
name = "reading"
kind = "inference"
outputs = {{ text = "text.lines" }}

[services.sla]
satisfaction_ratio = 0.95
bounds = [ {{ indicator = "latency_ms", at_most = 2000 }} ]
zone = {{ accuracy_percent = {{ at_least = 90 }} }}

[[services.tasks]]
name = "decode"
executor = "wasm"
artifact = "{DIGEST}"
artifact_bytes = 1000
inputs.image = {{ from = "request.image", dtype = "uint8", shape = [-1] }}
outputs.rgb = {{ dtype = "uint8", shape = [-1, -1, 3] }}
limits = {{ memory_bytes = 67108864, deadline_ms = 1000 }}
expected_ms = 5

[[services.tasks]]
name = "text"
executor = "onnx"
artifact = {{ digest = "{DIGEST}", size_bytes = 77 }}
inputs.rgb = "decode.rgb"
outputs.lines = {{ dtype = "uint8", shape = [-1] }}
constants.table = {{ artifact = "{DIGEST}", artifact_bytes = 5, dtype = "float32", shape = [4] }}
providers = ["CPUExecutionProvider"]
demand = {{ cpu_percent = 50, accelerator = "gpu" }}
policy = {{ lost_after_ms = 500, replace = true, reconcile = "keep-replacement" }}
nodes = ["pi-1"]
"""


def problems_of(document: str, notation: str = "toml") -> tuple[str, ...]:
    with pytest.raises(DocumentError) as caught:
        parse(document, notation)
    return caught.value.problems


def test_a_whole_document_is_read() -> None:
    use_case, normalised = parse(READING, "toml")
    service = use_case.services[0]
    assert [task.name for task in service.tasks] == ["decode", "text"]
    assert service.tasks[0].artifact.size_bytes == 1000
    assert service.tasks[1].artifact.size_bytes == 77
    assert service.tasks[1].inputs["rgb"].source == "decode.rgb"
    assert service.tasks[1].constants["table"].dtype is Dtype.FLOAT32
    assert service.tasks[1].policy.lost_after_ms == 500
    assert [one.indicator for one in service.sla.all_bounds()] == ["latency_ms", "accuracy_percent"]
    assert json.loads(normalised) == tomllib.loads(READING)


def test_json_says_the_same_as_toml() -> None:
    use_case, normalised = parse(READING, "toml")
    assert parse(normalised, "json") == (use_case, normalised)


def test_the_document_is_left_as_the_user_wrote_it() -> None:
    _, normalised = parse(READING, "toml")
    assert json.loads(normalised)["services"][0]["tasks"][0]["artifact"] == DIGEST


TASK = "services[0].tasks"


@pytest.mark.parametrize(
    ("old", "new", "field", "told"),
    [
        (
            '"decode.rgb"',
            '"decod.rgb"',
            f"{TASK}[1].inputs.rgb",
            "there is no task 'decod' in this service; did you mean 'decode'?",
        ),
        (
            '"decode.rgb"',
            '"decode.rgbb"',
            f"{TASK}[1].inputs.rgb",
            "task 'decode' has no output 'rgbb'; did you mean 'rgb'?",
        ),
        (
            '"decode.rgb"',
            '"decode"',
            f"{TASK}[1].inputs.rgb",
            "'decode' is no source: write task.port or request.name",
        ),
        (
            '"decode.rgb"',
            '"request.rgb"',
            f"{TASK}[1].inputs.rgb",
            "it comes from the request: give its dtype and shape",
        ),
        (
            '"decode.rgb"',
            '{ from = "decode.rgb", dtype = "float32", shape = [-1, -1, 3] }',
            f"{TASK}[1].inputs.rgb",
            "it takes float32 [-1, -1, 3], but decode.rgb gives uint8 [-1, -1, 3]",
        ),
        (
            '"decode.rgb"',
            '{ from = "decode.rgb", shape = [-1, 3] }',
            f"{TASK}[1].inputs.rgb",
            "it takes uint8 [-1, 3], but decode.rgb gives uint8 [-1, -1, 3]",
        ),
        (
            'executor = "onnx"',
            'executor = "onyx"',
            f"{TASK}[1].executor",
            "'onyx' is none of wasm, onnx, container; did you mean 'onnx'?",
        ),
        (
            "expected_ms = 5",
            "expected = 5",
            f"{TASK}[0].expected",
            "there is no field 'expected' here; did you mean 'expected_ms'?",
        ),
        (
            "expected_ms = 5",
            "expected_ms = 5000",
            f"{TASK}[0].expected_ms",
            "a run of 5000 ms would be stopped by limits.deadline_ms, which is 1000",
        ),
        (
            "memory_bytes = 67108864",
            "memory_bytes = 5",
            f"{TASK}[0].limits.memory_bytes",
            "expected int >= 1048576, got 5",
        ),
        (
            'name = "text"',
            'name = "te.xt"',
            f"{TASK}[1].name",
            (
                "'te.xt' is not a task's name: letters, digits, '_' and '-', "
                "first a letter or digit, up to 48"
            ),
        ),
        (
            'name = "text"\nex',
            'name = "decode"\nexecutor = "onnx"#',
            f"{TASK}[1].name",
            "'decode' names another task of this service too",
        ),
        (
            'indicator = "latency_ms"',
            'indicator = "latncy_ms"',
            "services[0].sla.bounds[0]",
            "there is no indicator 'latncy_ms'; did you mean 'latency_ms'?",
        ),
        (
            "at_most = 2000",
            "at_least = 2000",
            "services[0].sla.bounds[0]",
            "latency_ms is better the lower it is: give at_most",
        ),
        (
            "at_most = 2000",
            "at_most = inf",
            "services[0].sla.bounds[0].at_most",
            "expected a finite number, got inf",
        ),
        (
            "at_most = 2000",
            "at_most = -1",
            "services[0].sla.bounds[0]",
            "latency_ms must be a number from 0",
        ),
        (
            "accuracy_percent = {",
            "latency_ms = {",
            "services[0].sla.zone.latency_ms",
            "the indicator latency_ms has a bound already",
        ),
        (
            '"text.lines"',
            '"text.line"',
            "services[0].outputs.text",
            "task 'text' has no output 'line'; did you mean 'lines'?",
        ),
        (
            "constants.table",
            "constants.rgb",
            f"{TASK}[1].constants.rgb",
            "the port 'rgb' is fed twice, by a constant and as an input",
        ),
        (
            'accelerator = "gpu"',
            'accelerator = "tpu"',
            f"{TASK}[1].demand.accelerator",
            "'tpu' is none of gpu, npu, or '' for none",
        ),
        (
            "satisfaction_ratio = 0.95",
            "satisfaction_ratio = 95",
            "services[0].sla.satisfaction_ratio",
            "expected float <= 1.0, got 95",
        ),
        (
            f'"{DIGEST}"\nartifact_bytes = 1000',
            '"modules/decode.wasm"',
            f"{TASK}[0].artifact.digest",
            (
                "'modules/decode.wasm' is not a digest 'sha256:...'; a file is pushed and "
                "replaced by its digest by 'tona usecase submit'"
            ),
        ),
    ],
)
def test_one_mistake_gives_one_sentence(old: str, new: str, field: str, told: str) -> None:
    document = READING.replace(old, new, 1)
    assert document != READING
    line = 1 + READING[: READING.index(old)].count("\n")
    assert f"line {line}, {field}: {told}" in problems_of(document)


SECOND_TASK = 1 + READING[: READING.rindex("[[services.tasks]]")].count("\n")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('name = "reading"\ntenant', "tenant", "the document: the field 'name' is missing"),
        (
            'inputs.rgb = "decode.rgb"',
            "",
            f"line {SECOND_TASK}, {TASK}[1]: the field 'inputs' is missing",
        ),
        (
            '"text.lines"',
            '"decode.rgb"',
            (
                f"line {SECOND_TASK}, {TASK}[1]: nothing uses what task 'text' gives: name one "
                "of its outputs in the service's outputs, or remove it"
            ),
        ),
        (
            f'"{DIGEST}"\nartifact_bytes = 1000',
            f'"{DIGEST}"',
            f"line 18, {TASK}[0].artifact: its size is missing: give artifact_bytes beside it",
        ),
    ],
)
def test_what_is_missing_is_told_where_it_belongs(old: str, new: str, told: str) -> None:
    assert problems_of(READING.replace(old, new, 1)) == (told,)


def test_a_circle_is_told() -> None:
    document = READING.replace(
        'inputs.image = { from = "request.image", dtype = "uint8", shape = [-1] }',
        'inputs.image = { from = "text.lines" }',
    )
    assert problems_of(document) == (
        "line 15, services[0].tasks: the tasks decode, text feed each other in a circle",
    )


def test_two_tasks_agree_on_what_they_take_from_the_request() -> None:
    document = READING.replace(
        'inputs.rgb = "decode.rgb"',
        'inputs.rgb = "decode.rgb"\n'
        'inputs.raw = { from = "request.image", dtype = "int64", shape = [-1] }',
    )
    assert problems_of(document) == (
        (
            "line 30, services[0].tasks[1].inputs.raw: it takes request.image as int64 [-1], "
            "but decode.image as uint8 [-1]"
        ),
    )


def test_every_problem_is_told_at_once_up_to_a_bound() -> None:
    document = READING.replace("expected_ms = 5", "expected = 5").replace(
        'nodes = ["pi-1"]', "\n".join(f"wrong_{n} = 1" for n in range(30))
    )
    found = problems_of(document)
    assert len(found) == MAX_PROBLEMS + 1
    assert found[-1] == "and 11 more problems"
    assert "services[0].tasks[0].expected" in found[0]


def test_the_problems_of_every_service_are_told() -> None:
    second = READING[READING.index("[[services]]") :].replace('"decode.rgb"', '"x.y"')
    found = problems_of(READING.replace('"text.lines"', '"text.no"') + second)
    assert [one.partition(":")[0] for one in found] == [
        "line 8, services[0].outputs.text",
        "line 37, services[1].name",
        "line 60, services[1].tasks[1].inputs.rgb",
    ]


@pytest.mark.parametrize(
    ("document", "notation", "told"),
    [
        ("name = ", "toml", "it is no TOML: Invalid value (at end of document)"),
        ('{"a":\n 1,}', "json", "line 2: it is no JSON: "),
        ("[1]", "json", "the document must be a table (a JSON object)"),
        ('{"a": NaN}', "json", "it cannot be read: NaN is no number of JSON"),
        ("[" * 5000, "json", "it is nested too deeply"),
        ("a = " + "[" * 5000, "toml", "it is nested too deeply"),
        ("name = 1", "yaml", "format 'yaml' is not known: give toml or json"),
        ("#" * (1 << 20) + "#", "toml", "it is longer than 1048576 characters"),
    ],
)
def test_what_is_no_document_is_said_so(document: str, notation: str, told: str) -> None:
    (problem,) = problems_of(document, notation)
    assert problem.startswith(told)


def test_an_empty_document_lacks_everything() -> None:
    assert set(problems_of("")) == {
        "the document: the field 'name' is missing",
        "the document: the field 'services' is missing",
    }


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def paths(tree: Any, path: Path = ()) -> list[Path]:
    if isinstance(tree, dict):
        return [
            one for key, item in tree.items() for one in [(*path, key), *paths(item, (*path, key))]
        ]
    if isinstance(tree, list):
        return [
            one for at, item in enumerate(tree) for one in [(*path, at), *paths(item, (*path, at))]
        ]
    return []


@given(st.data())
def test_any_wrong_value_is_told_never_raised(data: st.DataObject) -> None:
    tree = tomllib.loads(READING)
    path = data.draw(st.sampled_from(paths(tree)))
    place: Any = tree
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = data.draw(values)
    document = json.dumps(tree, indent=1)
    try:
        use_case, normalised = parse(document, "json")
    except DocumentError as error:
        told = error.problems
    else:
        told = ("none",)
        assert parse(normalised, "json")[0] == use_case
    assert told
    assert all(told)


@given(st.dictionaries(st.text(max_size=8), values, max_size=4))
def test_every_field_of_a_json_document_has_its_line(tree: dict[str, Any]) -> None:
    clean = json.loads(json.dumps(tree).replace("NaN", "0").replace("Infinity", "1"))
    document = json.dumps(clean, indent=1)
    lines = json_lines(document)
    text = document.split("\n")
    for path in paths(clean):
        assert path in lines
        if isinstance(path[-1], str):
            assert json.dumps(path[-1]) + ":" in text[lines[path] - 1]


keys = st.text("ab.\"'# =[", min_size=1, max_size=4)
scalars = st.sampled_from(
    ["1", "-1.5", "true", "1979-05-27T07:32:00Z", "'#]'", '"a\\"]"', '"""x\n\\"y"""', "'''\n'''"]
)
inline = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda v: "[\n# [\n" + ",\n".join(v) + "\n]")
        | st.dictionaries(keys, inner, max_size=3).map(
            lambda v: "{" + ", ".join(f"{json.dumps(k)} = {one}" for k, one in v.items()) + "}"
        )
    ),
    max_leaves=6,
)


@given(
    st.dictionaries(keys, inline, max_size=3), st.lists(st.dictionaries(keys, inline), max_size=3)
)
def test_every_field_of_a_toml_document_has_its_line(
    top: dict[str, str], elements: list[dict[str, str]]
) -> None:
    written = [f"{json.dumps(k)} = {one} # [[x]]" for k, one in top.items()]
    for element in elements:
        written.append("[[ arr . 'ay' ]]")
        written += [f"{json.dumps(k)} = {one}" for k, one in element.items()]
        written += ["[arr.ay.sub]", "x.y = 1"]
    document = "\n".join(written)
    tree = msgspec.to_builtins(tomllib.loads(document))
    lines = toml_lines(document)
    text = document.split("\n")
    for path in paths(tree):
        if path[:1] == ("arr",) and len(path) < 3:
            continue
        assert path in lines, path
        if path[-1] == "sub":
            assert text[lines[path] - 1] == "[arr.ay.sub]"
        elif isinstance(path[-1], str) and path[-2:-1] != ("ay",):
            quoted = json.dumps(path[-1])
            assert quoted in text[lines[path] - 1] or path[-1] in text[lines[path] - 1]


def test_an_unknown_place_has_the_line_of_what_is_around_it() -> None:
    lines = toml_lines("a = 1\n[b]\nc = 2\n")
    assert locate(lines, ("b", "c", "d")) == 3
    assert locate(lines, ("b", "x")) == 2
    assert locate(lines, ("x",)) is None


@pytest.mark.parametrize(
    "document",
    ["a" + ".a" * 200_000 + "=1", "[a" + ".'a'" * 20_000 + "]", "x = {" + "a . " * 20_000 + "b=1}"],
)
def test_a_key_without_end_is_refused_before_it_costs_anything(document: str) -> None:
    assert problems_of(document) == ("line 1: a key of so many parts is no field here",)


def test_tables_within_tables_cost_no_more_than_they_tell() -> None:
    nested = "{" + ".".join("abcdefgh") + "="
    document = "name='x'\nservices=" + nested * 200 + "1" + "}" * 200
    assert problems_of(document) == ("it is nested too deeply",)


def test_a_list_too_long_is_one_problem() -> None:
    tasks = "".join(f"[[services.tasks]]\nname = 't{at}'\n" for at in range(5000))
    told = problems_of(f"name='x'\n[[services]]\nname='a'\nkind='computing'\n{tasks}")
    assert told[-1].endswith("services[0].tasks: 5000 entries, at most 64 are allowed")
    assert len(told) == 2


def test_what_a_problem_repeats_is_short_and_cannot_move_a_cursor() -> None:
    key = "\x1b[2J" + "k" * 100_000
    document = json.dumps({"name": "n" * 100_000, "services": [{key: 1, "name": "\x1b[31m\n"}]})
    told = problems_of(document, "json")
    assert all(one.isprintable() and len(one) < 1000 for one in told), told
    assert any("is not a name" in one for one in told)


def test_an_oid_and_a_version_in_a_text_are_no_keys() -> None:
    parse(READING.replace('tenant = "default"', 'description = "1.3.6.1.4.1.311.21.8"'), "toml")
