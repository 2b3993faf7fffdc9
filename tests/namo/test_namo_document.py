"""What a use case may say beyond its tasks: variants, alternatives, sources, users, triggers."""

import json
import tomllib
from typing import Any

import pytest

from controller.namo.decompose import decompose, order_of
from controller.namo.usecase import DocumentError, parse
from protocols.manifest import Dtype, ExecutorKind, Interface
from protocols.messages.hierarchy import Autonomy, ServiceOrder
from protocols.messages.quality import (
    Declared,
    Leeway,
    Sink,
    SinkKind,
    Source,
    SourceKind,
)
from protocols.qoais import INDICATORS, Bound, ServiceKind, Zone

DIGEST = "sha256:" + "ab" * 32
OTHER = "sha256:" + "cd" * 32

CAMERA = f"""
name = "watch"
origin = "third-party"

[[services]]
name = "watch"
kind = "inference"
outputs = {{ found = "detect.found" }}

[services.sla]
satisfaction_ratio = 0.5
[services.sla.zone]
latency_ms = {{ at_most = 200 }}
accuracy_percent = {{ at_least = 80 }}
autonomy = {{ level = "partial" }}
data_privacy = {{ level = "node" }}
[[services.sla.users]]
user = "alice"
zone = {{ latency_ms = {{ at_most = 100 }} }}

[services.sources.image]
kind = "sensor"
name = "camera-0"
nodes = ["pi-1", "pi-2"]
rate_per_s = 10
shape = [480, 640, 3]

[services.sinks]
found = "store"

[[services.tasks]]
name = "shrink"
executor = "wasm"
artifact = "{DIGEST}"
artifact_bytes = 10
nodes = ["pi-2", "pi-3"]
inputs.image = {{ from = "request.image", dtype = "uint8", shape = [-1, -1, 3] }}
outputs.small = {{ dtype = "float32", shape = [1, 3, -1, -1] }}

[[services.tasks]]
name = "detect"
executor = "onnx"
artifact = {{ digest = "{DIGEST}", size_bytes = 100 }}
inputs.small = "shrink.small"
outputs.found = {{ dtype = "float32", shape = [-1, 6] }}
constants.table = {{ artifact = "{DIGEST}", artifact_bytes = 5, dtype = "float32", shape = [4] }}
accuracy_percent = 95
precision_bits = 32
declared = {{ robustness = "high" }}
priority = 6
replicas = 2
providers = ["CPUExecutionProvider"]

[[services.tasks.variants]]
name = "small"
artifact = "{OTHER}"
artifact_bytes = 20
accuracy_percent = 85
expected_ms = 8
precision_bits = 8

[[services.tasks.variants]]
name = "tiny"
artifact = "{OTHER}"
artifact_bytes = 7
accuracy_percent = 60
expected_ms = 2
constants.table = {{ artifact = "{OTHER}", artifact_bytes = 5, dtype = "float32", shape = [4] }}

[[services.alternatives]]
name = "direct"
accuracy_percent = 81
outputs = {{ found = "all.found" }}
[[services.alternatives.tasks]]
name = "all"
executor = "onnx"
artifact = "{DIGEST}"
artifact_bytes = 10
nodes = ["pi-1"]
inputs.image = {{ from = "request.image", dtype = "uint8", shape = [-1, -1, 3] }}
outputs.found = {{ dtype = "float32", shape = [-1, 6] }}
"""
DETECT = CAMERA.index('name = "detect"')
VARIANT = CAMERA.index('name = "small"')
TASK = "services[0].tasks[1]"


def problems_of(document: str, notation: str = "toml") -> tuple[str, ...]:
    with pytest.raises(DocumentError) as caught:
        parse(document, notation)
    return caught.value.problems


def ordered(document: str = CAMERA) -> ServiceOrder:
    (order,) = decompose(parse(document, "toml")[0], 1)
    return order


def test_a_whole_document_is_read_in_both_notations() -> None:
    use_case, normalised = parse(CAMERA, "toml")
    assert parse(normalised, "json") == (use_case, normalised)
    assert json.loads(normalised) == tomllib.loads(CAMERA)
    assert [one.name for one in use_case.services[0].ways()] == ["main", "direct"]


def test_variants_have_manifests_of_their_own_and_the_ports_of_the_task() -> None:
    detect = ordered().tasks[1]
    small, tiny = detect.variants
    assert small.manifest.artifact.digest == OTHER
    assert small.manifest.inputs == detect.manifest.inputs
    assert small.manifest.outputs == detect.manifest.outputs
    assert small.manifest.constants == detect.manifest.constants
    assert small.manifest.providers == ("CPUExecutionProvider",)
    assert tiny.manifest.constants[0].artifact.digest == OTHER
    assert small.declared == (Declared("accuracy_percent", 85.0), Declared("precision_bits", 8.0))
    assert detect.declared == (
        Declared("accuracy_percent", 95.0),
        Declared("precision_bits", 32.0),
        Declared("robustness", level="high"),
    )


FORMS = f"""
name = "forms"
[[services]]
name = "forms"
kind = "data-processing"
outputs = {{ y = "turn.y" }}
[[services.tasks]]
name = "turn"
executor = "wasm"
artifact = {{ digest = "{DIGEST}", size_bytes = 100 }}
interface = "tona-core-1"
functions = ["log"]
modules.more.artifact = {{ digest = "{OTHER}", size_bytes = 3 }}
inputs.x = {{ from = "request.x", dtype = "float32", shape = [-1] }}
outputs.y = {{ dtype = "float32", shape = [-1] }}
constants.table = {{ artifact = "{OTHER}", artifact_bytes = 5, dtype = "float32", shape = [4] }}
[[services.tasks.variants]]
name = "graph"
executor = "onnx"
artifact = {{ digest = "{OTHER}", size_bytes = 20 }}
constants = {{}}
providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
[[services.tasks.variants]]
name = "quiet"
artifact = {{ digest = "{OTHER}", size_bytes = 20 }}
functions = []
[[services.tasks.variants]]
name = "image"
executor = "container"
interface = "once"
arguments = ["--fast"]
artifact = {{ digest = "{OTHER}", size_bytes = 20 }}
limits = {{ memory_bytes = 8388608 }}
"""


def test_a_variant_may_be_a_program_of_another_executor() -> None:
    (turn,) = ordered(FORMS).tasks
    graph, quiet, image = (one.manifest for one in turn.variants)
    assert graph.kind is ExecutorKind.ONNX
    assert (graph.functions, graph.modules, graph.interface) == ((), (), None)
    assert [one.name for one in graph.inputs] == ["x"]
    assert graph.constants == ()
    assert graph.providers == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert graph.limits == turn.manifest.limits
    assert (quiet.kind, quiet.functions) == (ExecutorKind.WASM, ())
    assert (quiet.modules, quiet.interface) == (turn.manifest.modules, turn.manifest.interface)
    assert (image.kind, image.called, image.arguments) == (
        ExecutorKind.CONTAINER,
        Interface.ONCE,
        ("--fast",),
    )
    assert image.constants == turn.manifest.constants
    assert image.limits.memory_bytes == 8 << 20
    assert turn.leeway.threads_max == 8


@pytest.mark.parametrize(
    ("old", "new", "field", "told"),
    [
        ("functions = []", 'carries = { a = "b" }', "[1].carries",
         "only onnx tasks have carries, this is wasm"),
        ('executor = "onnx"', 'executor = "wasm"', "[0].providers",
         "only onnx tasks have providers, this one is wasm"),
        ('interface = "once"', 'interface = "wasi-1"', "[2].interface",
         "'wasi-1' is no interface of theirs: it is one of once, serve"),
        ('executor = "onnx"', 'executor = "onnx"\nfunctions = ["log"]', "[0].functions",
         "only wasm tasks of the interface tona-core-1 have host functions"),
        ("constants = {}", "constants.x = { artifact = 'OTHER', dtype = 'float32', shape = [1] }",
         "[0].constants.x",
         "the port 'x' is fed twice, by a constant and as an input"),
    ],
)  # fmt: skip
def test_a_mistake_of_a_variant_is_told_at_the_variant(
    old: str, new: str, field: str, told: str
) -> None:
    document = FORMS.replace(old, new.replace("OTHER", OTHER), 1)
    assert document != FORMS
    assert [one for one in problems_of(document) if f"variants{field}: {told}" in one]


def test_the_leeway_has_sensible_defaults_and_no_variant_that_breaks_the_agreement() -> None:
    detect = ordered().tasks[1]
    assert detect.leeway == Leeway(
        variants=("small",),
        moves=True,
        cpu_percent_max=1600,
        threads_max=8,
        replicas_max=2,
        providers=("CPUExecutionProvider",),
        encodings=("deflate",),
        priority_max=8,
    )
    assert ordered().tasks[0].leeway.threads_max == 0


def test_the_leeway_is_what_the_document_says() -> None:
    said = (
        "leeway = { variants = [], moves = false, cpu_percent_max = 50, threads_max = 2, "
        "replicas_max = 4, encodings = [], priority_max = 6, rate_min_per_s = 2, "
        'decimations = [2, 4], functions = ["changes"], providers = [] }'
    )
    document = CAMERA[:DETECT] + said + "\n" + CAMERA[DETECT:]
    assert ordered(document).tasks[1].leeway == Leeway(
        moves=False,
        cpu_percent_max=50,
        threads_max=2,
        replicas_max=4,
        priority_max=6,
        rate_min_per_s=2,
        decimations=(2, 4),
        functions=("changes",),
    )


def test_under_manual_control_nothing_may_be_changed() -> None:
    order = ordered(CAMERA.replace('level = "partial"', 'level = "manual"'))
    assert order.autonomy is Autonomy.MANUAL
    assert {one.leeway for one in order.tasks} == {Leeway(moves=False)}
    assert ordered().autonomy is Autonomy.PARTIAL
    line = 'autonomy = { level = "partial" }\n'
    assert ordered(CAMERA.replace(line, "")).autonomy is Autonomy.FULL


def test_sources_sinks_and_users_travel_with_the_order() -> None:
    order = ordered()
    assert order.sources == (
        Source("image", SourceKind.SENSOR, "camera-0", Dtype.UINT8, (480, 640, 3),
               ("pi-1", "pi-2"), 10.0),
    )  # fmt: skip
    assert order.sinks == (Sink("found", SinkKind.STORE),)
    (alice,) = order.users
    assert alice.user == "alice"
    assert Bound("latency_ms", at_most=100) in alice.zone.bounds
    assert {one.indicator for one in alice.zone.bounds} == {
        one.indicator for one in order.sla.zone.bounds
    }


def test_raw_input_stays_where_it_comes_to_be() -> None:
    shrink, detect = ordered().tasks
    assert shrink.origins == ("pi-2",)
    assert detect.origins == ()


def test_an_alternative_is_an_order_of_its_own() -> None:
    service = parse(CAMERA, "toml")[0].services[0]
    order = order_of(service, service.ways()[1], "watch", 4)
    assert [one.task for one in order.tasks] == ["watch.all"]
    assert order.decomposition == "direct+spread"
    assert order.outputs[0].source == "all"
    assert order.sources == ordered().sources


@pytest.mark.parametrize(
    ("old", "new", "field", "told"),
    [
        ('name = "small"', 'name = "tiny"', f"{TASK}.variants[1].name",
         "'tiny' names another variant of this task too"),
        ("expected_ms = 8", "expected_ms = 20000", f"{TASK}.variants[0].expected_ms",
         "a run of 20000 ms would be stopped by limits.deadline_ms, which is 10000"),
        ('constants.table = {{ artifact = "OTHER"', 'constants.tabel = {{ artifact = "OTHER"',
         f"{TASK}.variants[1].constants",
         "a variant has the ports of its task: give the constants table, of equal types"),
        ('robustness = "high"', 'robustness = "hihg"', f"{TASK}.declared.robustness",
         "robustness has the levels low, medium, high"),
        ('robustness = "high"', "latency_ms = 3", f"{TASK}.declared.latency_ms",
         ("latency_ms is measured, not declared "
         "(from a request's arrival to its answer, summed up along the way)")),
        ('robustness = "high"', "accuracy_percent = 3", f"{TASK}.declared.accuracy_percent",
         "accuracy_percent has a field of its own: write it beside declared"),
        ('robustness = "high"', 'data_privacy = "node"', f"{TASK}.declared.data_privacy",
         "data_privacy is agreed in the zone and kept by the network, not declared by a program"),
        ('robustness = "high"', "robustness = 3", f"{TASK}.declared.robustness",
         "robustness is a level"),
        ('robustness = "high"', 'bit_error_rate = "x"', f"{TASK}.declared.bit_error_rate",
         "bit_error_rate is a number in 1"),
        ("priority = 6", 'leeway = { variants = ["smal"] }', f"{TASK}.leeway.variants",
         "task 'detect' has no variant 'smal'; did you mean 'small'?"),
        ("priority = 6", 'leeway = { encodings = ["gzip"] }', f"{TASK}.leeway.encodings",
         "'gzip' is none of deflate"),
        ("priority = 6", "leeway = { decimations = [0] }", f"{TASK}.leeway.decimations",
         "0 is not from 1 to 64"),
        ("priority = 6", "leeway = { priority_max = 3 }", f"{TASK}.leeway.priority_max",
         "3 is below the task's own priority, 4"),
        ("priority = 6", "leeway = { replicas_max = 1 }", f"{TASK}.leeway.replicas_max",
         "1 is below the task's own replicas, 2"),
        ("priority = 6", "priority = 10", f"{TASK}.priority", "expected int <= 9, got 10"),
        ("accuracy_percent = 95", "accuracy_percent = 101", f"{TASK}.accuracy_percent",
         "expected float <= 100.0, got 101"),
        ('name = "direct"', 'name = "main"', "services[0].alternatives[0].name",
         "'main' is the service itself"),
        ('found = "all.found"', 'fund = "all.found"', "services[0].alternatives[0].outputs.fund",
         "the service itself has no output 'fund'; did you mean 'found'?"),
        ('found = "all.found"', 'found = "al.found"', "services[0].alternatives[0].outputs.found",
         "there is no task 'al' in this service; did you mean 'all'?"),
        ("[services.sources.image]", "[services.sources.imag]", "services[0].sources.imag",
         "no task takes request.imag; did you mean 'image'?"),
        ("shape = [480, 640, 3]", "shape = [480, 640]", "services[0].sources.image",
         "it gives uint8 [480, 640], but request.image is uint8 [-1, -1, 3]"),
        ("rate_per_s = 10", "rate_per_s = 0", "services[0].sources.image.rate_per_s",
         "it must be above 0"),
        ('kind = "sensor"', 'kind = "sensr"', "services[0].sources.image.kind",
         "'sensr' is none of sensor, file, topic; did you mean 'sensor'?"),
        ('kind = "sensor"', 'kind = "topic"', "services[0].sources.image.name",
         "'camera-0' is no topic: write the name as SERVICE.OUTPUT"),
        ('found = "store"', 'fond = "store"', "services[0].sinks.fond",
         "the service has no output 'fond'; did you mean 'found'?"),
        ("zone = { latency_ms = { at_most = 100 } }", "zone = { latency_ms = { at_least = 1 } }",
         "services[0].sla.users[0].zone.latency_ms",
         "latency_ms is better the lower it is: give at_most"),
        ("zone = { latency_ms = { at_most = 100 } }", 'zone = { robustness = { level = "low" } }',
         "services[0].sla.users[0].zone.robustness",
         "robustness is the same for every user: a zone of one user has what is measured for each"),
        ("latency_ms = { at_most = 200 }", "training_duration_s = { at_most = 200 }",
         "services[0].sla.zone.training_duration_s",
         "training_duration_s is of services of training, not of inference"),
        ("accuracy_percent = { at_least = 80 }", "accuracy_percent = { at_least = 120 }",
         "services[0].sla.zone.accuracy_percent", "accuracy_percent is a percentage: at most 100"),
        ("accuracy_percent = { at_least = 80 }", 'algorithm_privacy = { level = "node" }', TASK,
         "algorithm_privacy is node, but task 'detect' names no nodes that may have its program"),
        ('nodes = ["pi-2", "pi-3"]', 'nodes = ["pi-3"]', "services[0].tasks[0]",
         ("data_privacy is node, but no node has all that feeds task 'shrink' "
         "and is among its nodes")),
        ('origin = "third-party"', 'origin = "network"', "origin",
         "the network asks by a trigger: give [trigger]"),
    ],
)  # fmt: skip
def test_one_mistake_gives_one_sentence_with_its_place(
    old: str, new: str, field: str, told: str
) -> None:
    old, new = (one.replace("OTHER", OTHER).replace("{{", "{") for one in (old, new))
    document = CAMERA.replace(old, new, 1)
    assert document != CAMERA
    found = problems_of(document)
    assert [one.partition(", ")[2] or one for one in found if told in one] == [f"{field}: {told}"]
    assert all(one.startswith("line ") for one in found)


def test_raw_input_of_a_client_cannot_stay_on_an_unknown_node() -> None:
    start, end = CAMERA.index("[services.sources.image]"), CAMERA.index("[services.sinks]")
    without = (CAMERA[:start] + CAMERA[end:]).replace('nodes = ["pi-2", "pi-3"]\n', "")
    (problem,) = problems_of(without)
    assert problem.endswith(
        "services[0].tasks[0]: data_privacy is node, but where request.image comes to be is not "
        "known: give services.sources.image with nodes, or the task its nodes"
    )
    named = CAMERA[:start] + CAMERA[end:]
    assert ordered(named).tasks[0].origins == ("pi-2", "pi-3")


def test_sources_make_whole_requests() -> None:
    document = CAMERA.replace(
        'inputs.small = "shrink.small"',
        'inputs.small = "shrink.small"\n'
        'inputs.more = { from = "request.more", dtype = "uint8", shape = [1] }\nnodes = ["pi-2"]',
    )
    assert any("request.more has none" in one for one in problems_of(document))


KINDS = {
    kind: sorted(one.name for one in INDICATORS.values() if kind in one.kinds)
    for kind in ServiceKind
}


@pytest.mark.parametrize("kind", sorted(ServiceKind))
def test_each_kind_takes_its_indicators_and_refuses_the_others(kind: ServiceKind) -> None:
    task = {
        "name": "t", "executor": "wasm", "artifact": DIGEST, "artifact_bytes": 1, "nodes": ["n"],
        "inputs": {"x": {"from": "request.x", "dtype": "uint8", "shape": [-1]}},
        "outputs": {"y": {"dtype": "uint8", "shape": [-1]}},
    }  # fmt: skip
    service: dict[str, Any] = {
        "name": "s", "kind": kind.value, "outputs": {"y": "t.y"}, "tasks": [task],
    }  # fmt: skip

    def document(names: list[str]) -> str:
        zone = {name: side(name) for name in names}
        return json.dumps({"name": "u", "services": [{**service, "sla": {"zone": zone}}]})

    use_case, _ = parse(document(KINDS[kind]), "json")
    (order,) = decompose(use_case, 1)
    assert isinstance(order.sla.zone, Zone)
    assert len(order.sla.zone.bounds) == len(KINDS[kind])
    for name in sorted(set(INDICATORS) - set(KINDS[kind])):
        (problem,) = problems_of(document([name]), "json")
        assert f"not of {kind}" in problem


def side(name: str) -> dict[str, Any]:
    indicator = INDICATORS[name]
    if not indicator.quantitative:
        return {"level": "basic" if "basic" in indicator.levels else indicator.levels[-1]}
    return {"at_most": 10} if indicator.direction == "lower" else {"at_least": 10}


# Triggers.

TRIGGER = (
    CAMERA.replace('origin = "third-party"', 'origin = "network"')
    + """
[trigger]
network = "element"
element = "ta-main"
for_ms = 1000
cooldown_ms = 5000
[trigger.when]
cpu_percent = { at_least = 80, until = 60 }
nodes = { at_most = 3 }
"""
)


def test_a_trigger_is_read() -> None:
    trigger = parse(TRIGGER, "toml")[0].trigger
    assert trigger is not None
    assert trigger.when["cpu_percent"].until == 60
    assert (trigger.for_ms, trigger.cooldown_ms, trigger.element) == (1000, 5000, "ta-main")


@pytest.mark.parametrize(
    ("old", "new", "field", "told"),
    [
        ('origin = "network"', 'origin = "user"', "origin",
         "a trigger is pulled by the network, not by user"),
        ('network = "element"', 'network = "network"', "trigger.element",
         'only network = "element" looks at one anchor'),
        ("cpu_percent = { at_least", "cpu_percnt = { at_least", "trigger.when.cpu_percnt",
         "there is no aggregate 'cpu_percnt'; did you mean 'cpu_percent'?"),
        ("until = 60", "until = 90", "trigger.when.cpu_percent",
         "until lies above at_least, 80: it would clear at once"),
        ("nodes = { at_most = 3 }", "nodes = { at_most = 3, until = 2 }", "trigger.when.nodes",
         "until lies below at_most, 3: it would clear at once"),
        ("nodes = { at_most = 3 }", "nodes = { }", "trigger.when.nodes",
         "give exactly one of at_least, at_most"),
        ("nodes = { at_most = 3 }", "nodes = { at_most = inf }", "trigger.when.nodes.at_most",
         "expected a finite number, got inf"),
        ("for_ms = 1000", "for_ms = -1", "trigger.for_ms", "expected int >= 0, got -1"),
    ],
)  # fmt: skip
def test_a_wrong_trigger_is_told(old: str, new: str, field: str, told: str) -> None:
    document = TRIGGER.replace(old, new, 1)
    assert document != TRIGGER
    (problem,) = problems_of(document)
    assert problem.partition(", ")[2] == f"{field}: {told}"


def test_services_may_feed_each_other_by_topics_but_in_no_circle() -> None:
    def fed(name: str, by: str) -> str:
        start = CAMERA.index("[[services]]")
        text = CAMERA[start:].replace('name = "watch"', f'name = "{name}"')
        text = text.replace('data_privacy = { level = "node" }\n', "")
        return (
            text.replace('kind = "sensor"', 'kind = "topic"')
            .replace('name = "camera-0"', f'name = "{by}"')
            .replace('nodes = ["pi-1", "pi-2"]\n', "")
        )

    head = 'name = "u"\n'
    parse(head + fed("a", "elsewhere.picture") + fed("b", "a.found"), "toml")
    told = problems_of(head + fed("a", "b.found") + fed("b", "a.found"))
    assert [one.partition(": ")[2] for one in told] == [
        "services 'a' and 'b' feed each other",
        "services 'b' and 'a' feed each other",
    ]
    (problem,) = problems_of(head + fed("a", "x.y") + fed("b", "a.fund"))
    assert problem.endswith("service 'a' has no output 'fund'; did you mean 'found'?")
    parse(head + fed("a", "a.image") + fed("b", "a.found"), "toml")
    (problem,) = problems_of(head + fed("a", "a.images"))
    assert problem.endswith("service 'a' has no input 'images'; did you mean 'image'?")
