"""Models that modules run: what a document may say of them, and what becomes of it."""

import pytest

from controller.namo.candidates import Position, fuse, rebuilt, weigh
from controller.namo.decompose import decompose
from controller.namo.model import UseCase
from controller.namo.usecase import DocumentError, parse
from protocols.manifest import Infer
from protocols.messages.hierarchy import ServiceOrder

DIGEST = "sha256:" + "ab" * 32

DOCUMENT = """
name = "u"
[[services]]
name = "s"
kind = "inference"
outputs = { y = "last.y" }

[[services.tasks]]
name = "guest"
executor = "wasm"
{artifact}
infers = ["model"]
inputs.x = { from = "request.x", dtype = "uint8", shape = [-1] }
outputs.y = { dtype = "uint8", shape = [-1] }

[[services.tasks]]
name = "last"
executor = "wasm"
{artifact}
inputs.x = "guest.y"
outputs.y = { dtype = "uint8", shape = [-1] }

[[services.tasks]]
name = "model"
executor = "onnx"
{artifact}
inputs.a = { from = "infer", dtype = "float32", shape = [1, 3] }
outputs.b = { dtype = "float32", shape = [-1] }
""".replace("{artifact}", f'artifact = "{DIGEST}"\nartifact_bytes = 100')


def read(text: str = DOCUMENT) -> UseCase:
    return parse(text, "toml")[0]


def order(text: str = DOCUMENT) -> ServiceOrder:
    (made,) = decompose(read(text), 1)
    return made


def test_a_model_stands_before_its_module_on_the_same_node_and_in_no_plan() -> None:
    made = order()
    assert [one.step for one in made.tasks] == ["model", "guest", "last"]
    model, guest, last = made.tasks
    assert guest.manifest.infers == (Infer("model", "s.model"),)
    assert model.group == guest.group != ""
    assert last.group == ""
    assert model.inferred
    assert not guest.inferred
    assert [port.name for port in model.manifest.inputs] == ["a"]
    assert made.decomposition == "main+spread"


def test_a_model_of_the_plan_may_be_run_by_a_module_too() -> None:
    made = order(
        DOCUMENT.replace(
            '{ from = "infer", dtype = "float32", shape = [1, 3] }',
            '{ from = "request.a", dtype = "float32", shape = [1, 3] }',
        ).replace('{ y = "last.y" }', '{ y = "last.y", b = "model.b" }')
    )
    by_step = {one.step: one for one in made.tasks}
    assert by_step["model"].group == by_step["guest"].group != ""
    assert not by_step["model"].inferred


def test_the_time_of_a_model_is_taken_from_its_module() -> None:
    text = DOCUMENT.replace(
        '[[services.tasks]]\nname = "guest"',
        'sla.zone.latency_ms = { at_most = 1000 }\n[[services.tasks]]\nname = "guest"',
    )
    shares = [one.qos.latency_ms for one in order(text).tasks]
    assert None not in shares
    assert sum(one or 0 for one in shares) == pytest.approx(1000)


def test_fused_steps_and_models_make_one_group() -> None:
    use_case = read()
    (service,) = use_case.services
    spread = order()
    assert set(fuse(spread.tasks, None)) == {"guest", "last"}
    found = {
        one.order.decomposition: one.order for one in weigh(service, "u", 1, Position({}, "ta"))
    }
    assert set(found) == {"main+spread", "main+fused"}
    assert len({one.group for one in found["main+fused"].tasks}) == 1
    for held in found.values():
        assert rebuilt(service, held, "u") == held, "the same document asks for no change"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('infers = ["model"]', 'infers = ["modle"]', "no task 'modle' in this service; did you"),
        ('infers = ["model"]', 'infers = ["model", "model"]', "a task is named twice"),
        ('infers = ["model"]', "", "nothing uses what task 'model' gives"),
        ('infers = ["model"]', 'infers = ["model", "last"]', "'last' is wasm"),
        ('infers = ["model"]', 'infers = ["model", "guest"]', "'guest' is wasm"),
        ('"float32", shape = [1, 3]', '"float32"', "a module feeds it: give its dtype and shape"),
        ('inputs.x = "guest.y"', 'inputs.x = "model.b"', "to the module that runs it"),
        (
            "inputs.a =",
            'inputs.c = { from = "request.x", dtype = "uint8", shape = [-1] }\ninputs.a =',
            "modules feed all inputs of 'model' or none",
        ),
        ('infers = ["model"]', 'infers = ["model"]\ninterface = "wasi-1"', "have models to run"),
    ],
)
def test_one_mistake_gives_one_sentence(old: str, new: str, told: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read(DOCUMENT.replace(old, new, 1))
    assert any(told in one for one in caught.value.problems), caught.value.problems


def test_only_models_are_fed_by_modules() -> None:
    text = DOCUMENT.replace('executor = "onnx"', 'executor = "container"')
    with pytest.raises(DocumentError, match="'model' is container"):
        read(text)
