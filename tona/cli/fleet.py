"""`tona fleet` and `tona node`: the nodes, their load and their links."""

import asyncio
import os
import select
import stat
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from time import monotonic
from typing import Annotated, Any

import typer
from rich.live import Live
from typer import Argument, Option

from protocols.messages.hierarchy import NodeState
from tona.cli import complete, draw
from tona.cli.context import AsJson, console, listing, show, with_api
from tona.cli.plain import plain
from tona.cli.signals import unless

app = typer.Typer(help="The nodes with load and link.", no_args_is_help=True)
node_app = typer.Typer(help="What can be done to a node.", no_args_is_help=True)

Prefix = Annotated[str, Option(help="Only names that begin so.")]
NodeName = Annotated[str, Argument(help="Name of the node.", autocompletion=complete.nodes)]


@app.command()
def status(
    prefix: Prefix = "",
    state: Annotated[NodeState | None, Option(help="Only nodes in this state.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show every node with its load and its link."""
    listing(
        "fleet.status",
        as_json,
        lambda nodes: show(draw.fleet(nodes, console().width)),
        prefix=prefix,
        state=state,
    )


@app.command("show")
def show_node(node: NodeName, as_json: AsJson = False) -> None:
    """Show everything about one node."""
    listing("node.show", as_json, lambda one: show(draw.node_details(one)), name=node)


@app.command()
def watch(
    as_json: Annotated[
        bool, Option("--json", help="Print a JSON object for each change instead.")
    ] = False,
) -> None:
    """Follow the fleet live, until q or Ctrl-C; into a pipe a line for each change."""
    if as_json:
        with_api(_print_changes)
    elif sys.stdout.isatty():
        with_api(_live)
    else:
        with_api(_print_lines)


@node_app.command()
def drain(node: NodeName, as_json: AsJson = False) -> None:
    """Let a node finish what it has and give it nothing new."""
    listing(
        "node.drain",
        as_json,
        lambda one: show(
            f"{one.node} is {one.state}: "
            + (
                "it takes nothing when it comes back"
                if one.state == "lost"
                else "it finishes what it has, its tasks move"
            )
        ),
        name=node,
    )


@node_app.command()
def resume(node: NodeName, as_json: AsJson = False) -> None:
    """Let a node that was drained take tasks again."""
    listing(
        "node.resume",
        as_json,
        lambda one: show(f"{one.node} is {one.state} and takes tasks again"),
        name=node,
    )


@node_app.command()
def forget(node: NodeName, as_json: AsJson = False) -> None:
    """Forget a node that is gone for good; born again, it is simply known again."""
    listing("node.forget", as_json, lambda one: show(f"{one.node} is known no more"), name=node)


async def _live(api: Any) -> None:
    from tona.cli.follow import NODES, follow  # noqa: PLC0415 - slow to import

    left, came = asyncio.Event(), draw.Came()
    with _key("q", left), Live(console=console(), auto_refresh=False) as live:

        async def draw_forever() -> None:
            async with aclosing(follow(api, NODES)) as states:
                async for nodes in states:
                    rows = came.noted([nodes[name] for name in sorted(nodes)], monotonic())
                    live.update(draw.fleet(rows, live.console.width), refresh=True)

        leaving = asyncio.ensure_future(left.wait())
        try:
            await unless(leaving, draw_forever())
        finally:
            leaving.cancel()


async def _print_changes(api: Any) -> None:
    import msgspec  # noqa: PLC0415 - only here

    from controller.api.named import to_json  # noqa: PLC0415 - the same
    from controller.records import NodeView  # noqa: PLC0415 - the same

    def tell(node: str, view: Any) -> str:
        value = msgspec.json.encode(None) if view is None else to_json(view, NodeView)
        return f'{{"node":"{node}","value":{value.decode()}}}'

    await _tell_changes(api, tell)


async def _print_lines(api: Any) -> None:
    came = draw.Came()
    told: dict[str, str] = {}

    def tell(node: str, view: Any) -> str:
        if view is None:
            told.pop(node, None)
            return plain(f"{node}  forgotten")
        [noted] = came.noted([view], monotonic())
        line = plain(draw.line(noted))
        if told.get(node) == line:
            return ""
        told[node] = line
        return line

    await _tell_changes(api, tell)


async def _tell_changes(api: Any, tell: Callable[[str, Any], str]) -> None:
    """Print what `tell` makes of every node and every change, until nobody reads it any more."""
    from tona.cli.follow import NODES, changes  # noqa: PLC0415 - slow to import

    async def print_forever() -> None:
        async with aclosing(changes(api, NODES)) as found:
            async for node, view in found:
                line = tell(node, view)
                if line:
                    sys.stdout.write(f"{line}\n")
                    sys.stdout.flush()

    left = asyncio.Event()
    with _unread(left):
        leaving = asyncio.ensure_future(left.wait())
        try:
            await unless(leaving, print_forever())
        finally:
            leaving.cancel()


@contextmanager
def _unread(left: asyncio.Event) -> Iterator[None]:
    """Set an event when a pipe's reader has gone: a calm fleet gives no line that would fail."""
    try:
        handle = sys.stdout.fileno()
        pipe = stat.S_ISFIFO(os.fstat(handle).st_mode)
    except (OSError, ValueError):
        pipe = False
    if not pipe:
        yield
        return
    loop = asyncio.get_running_loop()
    loop.add_reader(handle, left.set)
    try:
        yield
    finally:
        loop.remove_reader(handle)


@contextmanager
def _key(key: str, pressed: asyncio.Event) -> Iterator[None]:
    """Set an event when a key is pressed; without a terminal nothing happens."""
    if not sys.stdin.isatty():
        yield
        return
    loop, handle = asyncio.get_running_loop(), sys.stdin.fileno()
    before = termios.tcgetattr(handle)

    def read() -> None:
        ready, _, _ = select.select([handle], [], [], 0)
        if ready and key in os.read(handle, 64).decode(errors="replace").lower():
            pressed.set()

    tty.setcbreak(handle)
    loop.add_reader(handle, read)
    try:
        yield
    finally:
        loop.remove_reader(handle)
        termios.tcsetattr(handle, termios.TCSADRAIN, before)
