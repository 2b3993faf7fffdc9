"""`tona call`: any operation of the table by its name, for what has no command of its own."""

from typing import Annotated, Any, Final

import msgspec
from typer import Argument, Option

from controller.api.operation import Operation, Transfer
from controller.api.operations import BY_NAME, TABLE
from protocols.errors import UserError
from protocols.submission import near
from tona.cli.context import AsJson, show, show_json, table, with_api

CALLABLE: Final = {one.name: one for one in TABLE if one.transfer is Transfer.JSON}


def _complete(incomplete: str) -> list[str]:
    return [one for one in CALLABLE if one.startswith(incomplete)]


def call(
    operation: Annotated[
        str | None,
        Argument(help="Its name; without one, the table.", autocompletion=_complete),
    ] = None,
    args: Annotated[list[str] | None, Option("--arg", "-a", help="NAME=VALUE; repeatable.")] = None,
    as_json: AsJson = False,
) -> None:
    """Call an operation of the controller and print its result as JSON."""
    if operation is None:
        _list(as_json)
        return
    wanted = CALLABLE.get(operation)
    if wanted is None:
        other = "; it carries content, not JSON" if operation in BY_NAME else ""
        hint = other or near(operation, CALLABLE)
        raise UserError(f"there is no operation {operation!r} to call{hint}")
    arguments = _arguments(wanted, args or [])

    async def work(api: Any) -> Any:
        return await api.raw(wanted.name, **arguments)

    show_json(with_api(work))


def _arguments(operation: Operation, given: list[str]) -> dict[str, Any]:
    texts: dict[str, str] = {}
    known = operation.arguments.__struct_fields__
    for one in given:
        name, equals, value = one.partition("=")
        if not equals:
            raise UserError(f"--arg {one!r} names nothing: write NAME=VALUE")
        if name not in known:
            hint = near(name, known) or f"; it takes {', '.join(known) or 'none'}"
            raise UserError(f"{operation.name} has no argument {name!r}{hint}")
        texts[name] = value
    try:
        # Texts of a command line become the types of the table.
        converted = msgspec.convert(texts, operation.arguments, strict=False)
    except msgspec.ValidationError as error:
        raise UserError(f"{operation.name}: {error}".replace("`", "")) from None
    arguments: dict[str, Any] = msgspec.to_builtins(converted)
    return arguments


def _list(as_json: bool) -> None:
    if as_json:
        rows = [
            {
                "name": one.name,
                "summary": one.summary,
                "arguments": list(one.arguments.__struct_fields__),
                "effect": one.effect,
                "permission": one.permission,
                "plane": one.plane,
                "dry_run": one.dry_run,
            }
            for one in CALLABLE.values()
        ]
        show_json(msgspec.json.encode(rows))
        return
    made = table("OPERATION", "EFFECT", "ARGUMENTS", "SUMMARY")
    for one in CALLABLE.values():
        names = ", ".join(one.arguments.__struct_fields__)
        made.add_row(one.name, one.effect, names or "-", one.summary)
    show(made)
