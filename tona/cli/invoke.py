"""`tona invoke`: one request to a service, inputs from files, texts or JSON."""

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Struct
from typer import Argument, Option

from protocols.errors import EnvironmentFailure, UserError
from protocols.messages.hierarchy import ServiceOrder
from protocols.messages.invocation import REQUEST
from protocols.submission import misfit
from tona.cli import complete
from tona.cli.context import AsJson, console, settings, show_json
from tona.cli.errors import RefusedByController
from tona.cli.usecases import read_file

if TYPE_CHECKING:
    from tona.cli.api import Api

FILE: Final = "@"
JSON: Final = "json:"
NAMO: Final = "namo"
"""How the name of a role that orders services begins."""
ORDER_S: Final = 5.0
"""How long a controller may take to say what a service takes, where the broker is known without."""
SHOWN: Final = 8
"""Elements of a tensor that are printed."""

Inputs = Annotated[
    list[str] | None,
    Option("--input", "-i", help="NAME=@FILE, NAME=TEXT or NAME=json:[...] (numbers); repeatable."),
]
Outputs = Annotated[
    list[str] | None,
    Option("--output", "-o", help="NAME=FILE: write an output's bytes there; repeatable."),
]


def invoke(
    service: Annotated[str, Argument(help="Its name.", autocompletion=complete.services)],
    inputs: Inputs = None,
    outputs: Outputs = None,
    deadline: Annotated[float, Option(min=0.001, help="In seconds.")] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Run a service once and print what it gives."""
    given, files = read_inputs(inputs), read_outputs(outputs)
    result = asyncio.run(_invoke(service, given, deadline))
    show_result(service, result, files, as_json=as_json)


def read_inputs(inputs: list[str] | None) -> list[tuple[str, Any]]:
    """Return the inputs of a command line by name. Raises UserError."""
    found = [_input(one) for one in inputs or ()]
    _once([name for name, _ in found], "--input")
    return found


def read_outputs(outputs: list[str] | None) -> dict[str, str]:
    """Return which outputs go to which files. Raises UserError."""
    found = [_split(one, "--output") for one in outputs or ()]
    _once([name for name, _ in found], "--output")
    for _, path in found:
        # What a run gives is gone once it turns out that it has no place.
        if not Path(path).absolute().parent.is_dir():
            raise UserError(f"--output {path}: cannot be written: there is no such folder")
        if Path(path).is_dir():
            raise UserError(f"--output {path}: cannot be written: it is a folder")
    return dict(found)


def _once(names: list[str], option: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{option} {name} is given {names.count(name)} times: give it once")


def show_result(service: str, result: Any, files: dict[str, str], *, as_json: bool) -> None:
    """Write the outputs that go to files, and print the result.

    Raises UserError where they cannot be written; what was computed is printed all the same.
    """
    try:
        _write_all(service, result, files)
    except UserError as error:
        if sys.stdout.isatty() and not as_json:
            _print(result, {})
            raise
        show_json(msgspec.json.encode(_document(result)))
        raise UserError(f"{error}; the whole answer is on the standard output, as JSON") from None
    if as_json:
        show_json(msgspec.json.encode(_document(result)))
    else:
        _print(result, files)


def _write_all(service: str, result: Any, files: dict[str, str]) -> None:
    unknown = files.keys() - result.outputs.keys()
    if unknown:
        raise UserError(
            f"service {service} has no output {min(unknown)!r}: "
            f"it gives {', '.join(sorted(result.outputs))}"
        )
    for name, path in files.items():
        _write(Path(path), result.data(name))


class Numbers(Struct, frozen=True):
    """An input as JSON; which type its numbers have is known to the service."""

    value: Any


async def _invoke(service: str, given: list[tuple[str, Any]], deadline_s: float) -> Any:
    from tona.cli.api import target  # noqa: PLC0415 - slow to import
    from tona.client import connect  # noqa: PLC0415 - the same

    found = settings()
    inputs = await fitting(service, given)
    async with connect(found.bundle.value or target(found).url) as client:
        return await client.invoke(service, inputs, deadline_s=deadline_s)


async def fitting(service: str, given: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return inputs as the SDK takes them; numbers get the types that the service says.

    Raises RefusedByController where there is no such service, or its inputs are others.
    """
    order = await _order(service)
    dtypes: dict[str, str] = {}
    if order is not None:
        dtypes = _dtypes(order)
        if text := misfit(service, dtypes.keys(), {name for name, _ in given}):
            raise RefusedByController(text)
    return {
        name: _array(name, value.value, dtypes.get(name)) if isinstance(value, Numbers) else value
        for name, value in given
    }


async def _order(service: str) -> ServiceOrder | None:
    """Return a service as it was ordered; None where this controller does not know the orders."""
    from tona.cli.api import Api, target  # noqa: PLC0415 - slow to import

    found = settings()
    within_s = ORDER_S if found.bundle.value else None
    async with Api(target(found)) as api:
        try:
            async with asyncio.timeout(within_s):
                return await _known(api, service)
        except (EnvironmentFailure, TimeoutError):
            # Whoever has a bundle needs the broker alone; else connecting says what is wrong.
            return None


async def _known(api: "Api", service: str) -> ServiceOrder | None:
    try:
        order: ServiceOrder = (await api.call("service.show", name=service)).order
    except RefusedByController:
        # A cell's own controller serves what a NAMO elsewhere has ordered.
        if any(one.startswith(NAMO) for one in (await api.call("system.info")).roles):
            raise
        return None
    return order


def _dtypes(order: ServiceOrder) -> dict[str, str]:
    """Return the element type of each input that a client gives."""
    return {
        edge.source_port: port.dtype.value
        for task in order.tasks
        for edge in task.inputs
        for port in task.manifest.inputs
        if edge.source == REQUEST and port.name == edge.port
    }


def _input(text: str) -> tuple[str, Any]:
    name, value = _split(text, "--input")
    if value.startswith(FILE):
        return name, read_file(Path(value.removeprefix(FILE)))
    if value.startswith(JSON):
        try:
            return name, Numbers(msgspec.json.decode(value.removeprefix(JSON)))
        except msgspec.DecodeError as error:
            raise UserError(f"--input {name}: no JSON: {error}") from None
    return name, value


def _split(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise UserError(f"{option} {text!r} names nothing: write NAME=VALUE")
    return name, value


def _array(name: str, value: Any, dtype: str | None) -> Any:
    """Return numbers as an array of the type that the service takes."""
    try:
        import numpy as np  # noqa: PLC0415 - an extra
    except ImportError:
        raise UserError(f"--input {name}=json: needs numpy: pip install numpy") from None
    try:
        array = np.array(value)
        if array.dtype.kind not in "bif":
            raise UserError(f"--input {name}: a list of numbers is needed")
        # An unknown input is refused by its name, whatever its type.
        made = array if dtype is None else array.astype(dtype)
    except ValueError as error:
        raise UserError(f"--input {name}: {error}") from None
    if array.dtype.kind == "i" and not (made == array).all():
        raise UserError(f"--input {name}: its numbers do not fit into {dtype}")
    return made


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written: {error.strerror}") from None


def _text(value: Any, data: bytes) -> str | None:
    """Return an output as text where it is one: bytes that are UTF-8."""
    if str(value.dtype) != "uint8" or len(value.shape) != 1:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _print(result: Any, files: dict[str, str]) -> None:
    out = console()
    several = len(result.outputs) > 1
    for name, value in sorted(result.outputs.items()):
        if name in files:
            continue
        text = _text(value, result.data(name))
        label = f"{name}: " if several else ""
        if text is not None:
            sys.stdout.write(f"{name}:\n{text}\n" if several else f"{text}\n")
        else:
            out.print(f"{label}{_describe(value)}", soft_wrap=True)
    nodes = " ".join(dict.fromkeys(one.node for one in result.timings))
    told = f"{result.elapsed_ms:.1f} ms, {result.attempts} attempt(s), on {nodes or '-'}"
    console(stderr=True).print(told, style="dim", soft_wrap=True)


def _describe(value: Any) -> str:
    shape = "x".join(str(axis) for axis in value.shape) or "scalar"
    flat = getattr(value, "flat", None)
    if flat is None:
        return f"{value.dtype} {shape}"
    first = ", ".join(f"{one:.6g}" for one in flat[:SHOWN])
    more = ", ..." if value.size > SHOWN else ""
    return f"{value.dtype} {shape} [{first}{more}]"


def _document(result: Any) -> dict[str, Any]:
    outputs = {}
    for name, value in sorted(result.outputs.items()):
        data = result.data(name)
        text = _text(value, data)
        outputs[name] = {"dtype": str(value.dtype), "shape": list(value.shape)} | (
            {"data_base64": data} if text is None else {"text": text}
        )
    timings = [msgspec.to_builtins(_named(one)) for one in result.timings]
    return {
        "outputs": outputs,
        "elapsed_ms": result.elapsed_ms,
        "attempts": result.attempts,
        "timings": timings,
    }


def _named(timing: Any) -> dict[str, Any]:
    return {name: getattr(timing, name) for name in timing.__struct_fields__}
