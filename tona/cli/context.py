"""What every command shares: settings of this call, consoles, the way to the controller."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer
from msgspec import Struct
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from tona.cli.plain import plain
from tona.cli.settings import Settings, client_settings

if TYPE_CHECKING:
    from rich.progress import Progress

PIPE_WIDTH: Final = 1000
"""Where the output is no terminal: what reads a pipe wants whole rows."""

NOTHING: Final = b"[]"
"""An empty listing, as JSON."""

_T = TypeVar("_T")

AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON, and nothing else, on the standard output.")
]


class Flags(Struct):
    """The global options of this call."""

    api: str | None = None
    bundle: str | None = None
    config: Path | None = None


flags = Flags()
"""Set once by the callback of the app, before any command runs."""


def settings() -> Settings:
    """Return how the controller is reached. Raises UserError."""
    return client_settings(flags.config, flags.api, flags.bundle)


def with_api(work: Callable[[Any], Awaitable[_T]]) -> _T:
    """Run what needs the controller's API. Raises what `Api` does."""
    # Slow to import, and half of the commands do without.
    from tona.cli.api import Api, target  # noqa: PLC0415 - slow to load

    async def run() -> _T:
        async with Api(target(settings())) as api:
            return await work(api)

    return asyncio.run(run())


class PlainConsole(Console):
    """Prints what nodes and documents say without the control characters in it."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render to segments; those that are rich's own control stay as they are."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(plain(text), style)


def console(*, stderr: bool = False) -> Console:
    """Return the console on an output; plain and as wide as its rows where it is no terminal."""
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    width = None if terminal else PIPE_WIDTH
    return PlainConsole(stderr=stderr, highlight=False, markup=False, width=width)


def progress(*, quiet: bool = False) -> "Progress":
    """Return bars on the standard error output that are gone in the end; none off a terminal."""
    from rich.progress import Progress  # noqa: PLC0415 - slow to import

    out = console(stderr=True)
    return Progress(console=out, transient=True, disable=quiet or not out.is_terminal)


def show(*what: RenderableType) -> None:
    """Print on the standard output."""
    put(console(), *what)


def put(out: Console, *what: RenderableType) -> None:
    """Print on a console, without the blanks at the end of rows where it is no terminal."""
    if out.is_terminal:
        out.print(*what)
        return
    with out.capture() as captured:
        out.print(*what)
    out.file.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def show_json(body: bytes) -> None:
    """Print a JSON document: indented for a person, on one line for a program."""
    if sys.stdout.isatty():
        from tona.cli.api import pretty  # noqa: PLC0415 - as above

        text = pretty(body)
    else:
        text = body.decode()
    sys.stdout.write(text + "\n")


def table(*columns: str) -> Table:
    """Return an empty table of the house's look; a column that begins with `>` goes right.

    Where it is narrow the first column, which names the thing, stays whole and the others fold.
    """
    made = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        right = name.startswith(">")
        made.add_column(
            name.removeprefix(">"), justify="right" if right else "left", no_wrap=index == 0
        )
    return made


def details(rows: Iterable[tuple[str, str | Text]]) -> Table:
    """Return names and values, a line each."""
    made = table("", "")
    made.show_header = False
    for name, value in rows:
        made.add_row(Text(name, style="dim"), value)
    return made


def or_dash(value: object, text: str = "{}") -> str:
    """Return a value as text; what is absent is a dash, never a 0."""
    return "-" if value is None or value == "" else text.format(value)


def stated(state: str, reason: str) -> str:
    """Return a state, and why, where there is a reason."""
    return f"{state}: {reason}" if reason else state


def listing(
    operation: str,
    as_json: bool,
    draw: Callable[[Any], None],
    named: Iterable[tuple[str, str]] = (),
    /,
    **arguments: Any,
) -> None:
    """Perform a reading operation and print it as JSON or as `draw` does.

    Where nothing is found, what it was limited to (`named`: an operation that shows it, its name)
    must at least be there. Raises RefusedByController, and what `Api` does.
    """

    async def check(api: Any) -> None:
        for shows, name in named:
            if name:
                await api.call(shows, name=name)

    async def json(api: Any) -> bytes:
        body: bytes = await api.raw(operation, **arguments)
        if body == NOTHING:
            await check(api)
        return body

    async def typed(api: Any) -> Any:
        found = await api.call(operation, **arguments)
        if not found:
            await check(api)
        return found

    if as_json:
        show_json(with_api(json))
    else:
        draw(with_api(typed))
