"""What a task may say of its program, and how it reaches the executor."""

import pytest

from controller.namo.decompose import decompose
from controller.namo.usecase import DocumentError, parse
from protocols.manifest import ArtifactRef, Carry, HostFunction, Interface, LinkedModule, Manifest

DIGEST = "sha256:" + "ab" * 32
LIBRARY = "sha256:" + "cd" * 32
ARTIFACT = f'artifact = "{DIGEST}"\nartifact_bytes = 100'


def document(fields: str, executor: str = "wasm") -> str:
    return f"""
name = "u"
[[services]]
name = "s"
kind = "inference"
outputs = {{ y = "t.y" }}
[[services.tasks]]
name = "t"
executor = "{executor}"
{ARTIFACT}
inputs.x = {{ from = "request.x", dtype = "uint8", shape = [-1] }}
outputs.y = {{ dtype = "uint8", shape = [-1] }}
{fields}
"""


def manifest_of(fields: str, executor: str = "wasm") -> Manifest:
    (order,) = decompose(parse(document(fields, executor), "toml")[0], 1)
    return order.tasks[0].manifest


def test_what_a_module_may_do_reaches_the_executor() -> None:
    manifest = manifest_of(
        'functions = ["log", "memory"]\nlimits.state_bytes = 4096\n'
        f'modules.lib = {{ artifact = "{LIBRARY}", artifact_bytes = 7 }}'
    )
    assert manifest.called is Interface.CORE
    assert manifest.functions == (HostFunction.LOG, HostFunction.MEMORY)
    assert manifest.limits.state_bytes == 4096
    assert manifest.modules == (LinkedModule("lib", ArtifactRef(LIBRARY, 7)),)
    assert manifest.beside == (ArtifactRef(LIBRARY, 7),)


def test_a_command_has_arguments() -> None:
    manifest = manifest_of('interface = "wasi-1"\narguments = ["-v", "x y"]')
    assert (manifest.called, manifest.arguments) == (Interface.WASI, ("-v", "x y"))


def test_a_model_remembers() -> None:
    manifest = manifest_of('carries.out = "in"\nlimits.state_bytes = 1024', "onnx")
    assert manifest.carries == (Carry("out", "in"),)
    assert manifest.called is None


def test_requests_of_a_model_may_share_runs() -> None:
    assert manifest_of("batch = 8", "onnx").batch == 8
    own = f'[[services.tasks.variants]]\nname = "v"\n{ARTIFACT}\nbatch = 2'
    (order,) = decompose(parse(document(f"batch = 8\n{own}", "onnx"), "toml")[0], 1)
    assert [one.manifest.batch for one in order.tasks[0].variants] == [2]


@pytest.mark.parametrize("port", ["x", "y"])
def test_rows_are_the_first_axis_of_every_port(port: str) -> None:
    text = document("batch = 8", "onnx")
    for one, shape in (("x", "shape = [-1] }\noutputs"), ("y", "shape = [-1] }\nbatch")):
        if one == port:
            text = text.replace(shape, shape.replace("-1", "3, -1"))
    with pytest.raises(DocumentError, match="must be -1: it counts the rows"):
        parse(text, "toml")


def test_a_container_is_called_once_by_default() -> None:
    assert manifest_of("", "container").called is Interface.ONCE
    assert manifest_of('interface = "serve"', "container").called is Interface.SERVE


@pytest.mark.parametrize(
    ("executor", "fields", "told"),
    [
        ("onnx", 'interface = "wasi-1"', "onnx tasks have none"),
        ("wasm", 'interface = "once"', "it is one of tona-core-1, wasi-1"),
        ("wasm", 'interface = "wasi-2"', "'wasi-2' is none of"),
        ("wasm", 'functions = ["net"]', "'net' is none of log, clock, random, memory"),
        ("wasm", 'functions = ["log", "log"]', "a function is named twice"),
        ("onnx", 'functions = ["log"]', "only wasm tasks of the interface tona-core-1 have host"),
        ("wasm", 'interface = "wasi-1"\nfunctions = ["log"]', "have host functions"),
        ("wasm", 'arguments = ["x"]', "only WASI commands and containers have arguments"),
        ("wasm", 'functions = ["memory"]', "say how many bytes at most"),
        ("wasm", "limits.state_bytes = 5", "nothing of this task remembers"),
        ("wasm", "limits.state_bytes = 99999999999", "expected int <= 16777216"),
        ("wasm", f"modules.tona = {{ artifact = '{LIBRARY}', artifact_bytes = 7 }}", "host's"),
        ("wasm", f"modules.lib = {{ artifact = '{LIBRARY}' }}", "its size is missing"),
        ("onnx", f"modules.lib = {{ artifact = '{LIBRARY}', artifact_bytes = 7 }}", "linked"),
        ("wasm", 'carries.a = "b"\nlimits.state_bytes = 5', "only onnx tasks have carries"),
        ("onnx", 'carries.a = "b"', "say how many bytes at most"),
        ("onnx", 'carries.y = "b"\nlimits.state_bytes = 5', "'y' is an output of the task too"),
        ("onnx", 'carries.a = "x"\nlimits.state_bytes = 5', "the port 'x' is fed twice"),
        ("onnx", 'carries.a = "c"\ncarries.b = "c"\nlimits.state_bytes = 5', "by two outputs"),
        ("wasm", "batch = 8", "only onnx tasks have a batch"),
        ("wasm", "deviceless.fresh = true", "only onnx tasks are fresh by word"),
        ("onnx", "deviceless.fresh = true\nbatch = 8", "share no fresh instance"),
        (
            "onnx",
            "deviceless = { fresh = true, keep_alive_ms = 5 }",
            "a fresh instance ends with its run",
        ),
        (
            "onnx",
            'deviceless.fresh = true\ncarries.a = "c"\nlimits.state_bytes = 5',
            "a fresh instance remembers nothing",
        ),
        ("wasm", "threads = 2", "only onnx tasks have threads"),
        ("onnx", "threads = 65", "expected int <= 64"),
        (
            "onnx",
            'batch = 8\ncarries.a = "c"\nlimits.state_bytes = 5',
            "what a model carries is of one call",
        ),
        ("onnx", 'carries.a = "c"\nreplicas = 2\nlimits.state_bytes = 5', "has one worker"),
    ],
)
def test_one_mistake_gives_one_sentence(executor: str, fields: str, told: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse(document(fields, executor), "toml")
    (problem,) = caught.value.problems
    assert problem.startswith("line ")
    assert told in problem


def test_a_command_has_one_stdin() -> None:
    text = document('interface = "wasi-1"').replace(
        "outputs.y", 'inputs.z = { from = "request.z", dtype = "uint8", shape = [1] }\noutputs.y'
    )
    with pytest.raises(DocumentError, match="one input, its stdin"):
        parse(text, "toml")
