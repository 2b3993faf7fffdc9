"""`tona ca`: the authority of a fleet, which issues and revokes identities."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer
from typer import Argument, Option

from controller.broker.address import Address
from controller.broker.spec import parse_url
from protocols.errors import UserError
from protocols.topics import Speaker
from protocols.transport import tls
from tona.cli.context import AsJson, or_dash, show, show_json, table
from tona.cli.settings import is_url

if TYPE_CHECKING:
    from controller.trust.authority import Authority
    from controller.trust.index import Entry

DEFAULT_CELL: Final = "cell"
DEFAULT_DAYS: Final = 825

app = typer.Typer(help="The fleet's own certificate authority.", no_args_is_help=True)


class Kind(StrEnum):
    """Whose identity a bundle is."""

    NODE = "node"
    CLIENT = "client"
    CONTROLLER = "controller"


Folder = Annotated[
    Path | None, Option("--authority", help="Its folder; else ~/.local/state/tona/authority.")
]


@app.command()
def init(
    authority: Folder = None,
    name: Annotated[str, Option(help="Name of the authority.")] = "tona",
    as_json: AsJson = False,
) -> None:
    """Make a new authority; its folder holds the secret key, so keep it to yourself."""
    made = _authority().init(_folder(authority), name)
    if as_json:
        show_json(msgspec.json.encode({"folder": str(made.folder), "name": name}))
    else:
        show(f"authority {name} in {made.folder}; give it to the controller with --authority")


@app.command()
def issue(
    name: Annotated[str, Argument(help="Whose identity: the name of the node or client.")],
    broker: Annotated[str, Option(help="HOST[:PORT] at which the fleet reaches the broker.")],
    kind: Annotated[Kind, Option(help="What it is.")] = Kind.NODE,
    cell: Annotated[str, Option(help="Its cell.")] = DEFAULT_CELL,
    api_url: Annotated[str, Option(help="URL of the controller's API.")] = "",
    address: Annotated[
        list[str] | None,
        Option(help="Host name or address that it serves at, as a node with --share; repeatable."),
    ] = None,
    days: Annotated[int, Option(min=1, help="How long it holds.")] = DEFAULT_DAYS,
    out: Annotated[Path | None, Option(help="File to write; else NAME.bundle.")] = None,
    authority: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Issue an identity as one file, for `--bundle` of agent, controller or client."""
    where = _address(broker)
    if api_url and not is_url(api_url):
        raise UserError(f"--api-url {api_url!r} is no URL: write https://HOST:PORT")
    addresses = tuple(address or ())
    if kind is Kind.CONTROLLER and not addresses:
        addresses = (where.host,)
    path = out or Path(f"{name}.bundle")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--out {path}: there is no such folder")
    bundle = (
        _authority()
        .open(_folder(authority))
        .issue(
            name,
            Speaker(kind.value),
            cell,
            broker_host=where.host,
            broker_port=where.port,
            api_url=api_url,
            addresses=addresses,
            days=days,
        )
    )
    tls.save(bundle, path)
    if as_json:
        said = {"file": str(path), "name": name, "kind": kind, "cell": cell, "broker": where.url}
        show_json(msgspec.json.encode(said))
    else:
        show(f"{kind} {name}: {path} (a secret: move it, do not copy it); {_next(kind, path)}")


@app.command()
def revoke(
    name: Annotated[str, Argument(help="Whose identity.")],
    authority: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Take an identity out of force; a running controller notices within a second."""
    _authority().open(_folder(authority)).revoke(name)
    if as_json:
        show_json(msgspec.json.encode({"revoked": name}))
    else:
        show(f"{name} is revoked")


@app.command("list")
def list_identities(authority: Folder = None, as_json: AsJson = False) -> None:
    """List every certificate that was issued and has not both expired and been revoked."""
    entries = _authority().open(_folder(authority)).list()
    if as_json:
        show_json(msgspec.json.encode(entries))
    else:
        _draw(entries)


def _draw(entries: "Sequence[Entry]") -> None:
    made = table("NAME", "KIND", "CELL", "STATE", "ISSUED", "EXPIRES", "ADDRESSES")
    now = datetime.now(UTC)
    for one in entries:
        state = "revoked" if one.revoked else "expired" if one.expires <= now else "in force"
        made.add_row(
            one.name,
            one.speaker,
            one.cell,
            state,
            f"{one.issued:%Y-%m-%d}",
            f"{one.expires:%Y-%m-%d}",
            or_dash(", ".join(one.addresses)),
        )
    show(made)


def _address(broker: str) -> Address:
    try:
        return parse_url(f"mqtts://{broker}")
    except UserError:
        raise UserError(f"--broker {broker!r} names no broker: write HOST or HOST:PORT") from None


def _authority() -> "type[Authority]":
    from controller.trust.authority import Authority  # noqa: PLC0415 - needs [controller]

    return Authority


def authority_at(folder: Path | None) -> "Authority":
    """Open the authority in a folder, or the user's own. Raises UserError."""
    return _authority().open(_folder(folder))


def _folder(given: Path | None) -> Path:
    if given is not None:
        return given.expanduser()
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "tona" / "authority"


def _next(kind: Kind, path: Path) -> str:
    match kind:
        case Kind.NODE:
            return f"there: tona agent --bundle {quote(path.name)}"
        case Kind.CLIENT:
            return f"there: tona --bundle {quote(path.name)} fleet status"
        case Kind.CONTROLLER:
            file = quote(str(path))
            return f"then: tona controller --broker mosquitto --authority ... --bundle {file}"
