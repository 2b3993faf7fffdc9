"""`tona artifact` where signatures are asked for: keys, signing, and who is trusted."""

import asyncio
from collections.abc import Sequence
from getpass import getuser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer
from typer import Argument, Option

from controller.trust.publishers import TrustState
from protocols.errors import UserError
from tona.cli.context import AsJson, listing, or_dash, settings, show, show_json, table, with_api
from tona.cli.errors import RefusedByController
from tona.cli.tasks import artifact_app, read_files
from tona.cli.trust import Folder, authority_at
from tona.cli.usecases import push

if TYPE_CHECKING:
    from controller.trust.repository import Repository, Rotated
    from tona.publishing import Signing, Wanted

DEFAULT_TENANT: Final = "default"
SIGN_TRIES: Final = 5
"""Another author of the same publisher may be faster."""
_ROTATED: Final = ("root", "targets", "online")

key_app = typer.Typer(help="Keys that sign artifacts.", no_args_is_help=True)
app = artifact_app
"""With the commands of `tona.cli.tasks`."""
app.add_typer(key_app, name="key")

Tenant = Annotated[str, Option(help="On whose behalf.")]
Key = Annotated[str, Option(help="Name of your key; else the first that may sign.")]


@key_app.command("new")
def new(
    name: Annotated[str, Argument(help="Name of the publisher; else your user name.")] = "",
    as_json: AsJson = False,
) -> None:
    """Make a key of your own, and the request to have it allowed."""
    from tona.publishing import keys_folder, new_key  # noqa: PLC0415 - slow to import

    made, request = new_key(keys_folder(), name or getuser())
    if as_json:
        show_json(msgspec.json.encode({"key": made, "request": str(request)}))
        return
    show(f"{made.file}: a secret of yours, keep a copy in a safe place")
    show(f"then, at the authority: tona artifact key allow {request}")


@key_app.command("list")
def list_own(as_json: AsJson = False) -> None:
    """List your own keys; `tona artifact trust` says which of them may sign."""
    from tona.publishing import keys_folder, list_keys  # noqa: PLC0415 - slow to import

    found = list_keys(keys_folder())
    if as_json:
        show_json(msgspec.json.encode(found))
        return
    made = table("PUBLISHER", "KEY", "FILE")
    for one in found:
        made.add_row(one.name, one.keyid[:12], one.file)
    show(made)


@key_app.command()
def allow(
    request: Annotated[Path, Argument(help="File made by `tona artifact key new`.")],
    tenant: Tenant = DEFAULT_TENANT,
    authority: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Let an author's key sign for a tenant; run where the authority is."""
    from tona.publishing import read_request  # noqa: PLC0415 - slow to import

    asked = read_request(request)
    repository(authority).allow(asked, tenant)
    if as_json:
        said = {"publisher": asked.publisher, "tenant": tenant, "key": asked.keyid}
        show_json(msgspec.json.encode(said))
    else:
        show(f"{asked.publisher} may sign for tenant {tenant} with key {asked.keyid[:12]}")


@key_app.command()
def revoke(
    publisher: Annotated[str, Argument(help="Whose key.")],
    key: Annotated[str, Option(help="Which one, by the beginning of its id; else all.")] = "",
    authority: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Take a publisher's key out of force, with what it alone has signed."""
    repository(authority).revoke(publisher, key)
    if as_json:
        show_json(msgspec.json.encode({"publisher": publisher, "key": key}))
    else:
        what = f"key {key} of {publisher}" if key else f"{publisher} with every key"
        show(f"{what} is revoked")


@app.command()
def rotate(
    role: Annotated[str, Argument(help="root, targets or online.")],
    root_key: Annotated[
        list[Path] | None,
        Option(help="A key of the present root that is kept elsewhere; may be said again."),
    ] = None,
    keys: Annotated[
        int | None, Option(min=1, help="So many keys for root; else as many as before.")
    ] = None,
    threshold: Annotated[
        int | None, Option(min=1, help="So many of them have to sign the next root.")
    ] = None,
    authority: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Replace the keys of a role of the authority over artifacts; running nodes follow."""
    if role not in _ROTATED:
        raise UserError(f"there is no role {role!r}: name one of {', '.join(_ROTATED)}")
    wanted: Rotated = role  # type: ignore[assignment]  # held against the three above
    version = repository(authority).rotate(wanted, root_key or (), keys, threshold)
    if as_json:
        show_json(msgspec.json.encode({"role": role, "root_version": version}))
    else:
        show(f"the {role} key is another one from root version {version} on")


@app.command()
def trust(as_json: AsJson = False) -> None:
    """Show who may sign artifacts here, and until when what is said of that holds."""

    def draw(state: TrustState) -> None:
        if not state.required:
            show("nobody has to sign here: the controller has no authority")
            return
        for name in ("root", "targets", "snapshot", "timestamp"):
            at = getattr(state, f"{name}_expires")
            away = "; its key is kept elsewhere" if name in state.offline else ""
            version = f" version {state.root_version}" if name == "root" else ""
            if name == "root" and state.root_keys > 1:
                version += f", signed by {state.root_threshold} of {state.root_keys} keys,"
            show(f"{name}{version} holds until {at:%Y-%m-%d %H:%M} UTC{away}")
        made = table("PUBLISHER", "TENANT", "STATE", ">ARTIFACTS", "HOLDS UNTIL", "KEYS")
        for one in state.publishers:
            until = f"{one.expires:%Y-%m-%d}" if one.expires else None
            stated = "trusted" if one.trusted else "to sign anew"
            keys = ", ".join(key[:12] for key in one.keys)
            made.add_row(one.name, one.tenant, stated, str(one.artifacts), or_dash(until), keys)
        show(made)

    listing("trust.show", as_json, draw)


@app.command()
def publish(
    files: Annotated[list[Path], Argument(help="Files to keep in the cell's store.")],
    key: Key = "",
    tenant: Tenant = DEFAULT_TENANT,
    as_json: AsJson = False,
) -> None:
    """Push artifacts and sign them."""
    wanted = read_files(files)

    async def work(api: Any) -> str:
        await push(api, wanted)
        return await sign_new(api, _wanted(wanted), key, tenant)

    _say(with_api(work), [one.digest for one in wanted], as_json)


@app.command()
def sign(
    digests: Annotated[list[str], Argument(help="Artifacts in the cell's store, by digest.")],
    key: Key = "",
    tenant: Tenant = DEFAULT_TENANT,
    as_json: AsJson = False,
) -> None:
    """Sign artifacts that are in the cell's store."""

    async def work(api: Any) -> str:
        from tona.publishing import Wanted  # noqa: PLC0415 - slow to import

        known = {one.digest: one.size_bytes for one in await api.call("artifact.list")}
        absent = [one for one in digests if one not in known]
        if absent:
            raise UserError(f"there is no artifact {absent[0]}: see `tona artifact list`")
        return await sign_new(api, [Wanted(one, known[one]) for one in digests], key, tenant)

    _say(with_api(work), digests, as_json)


@app.command()
def withdraw(
    digests: Annotated[list[str], Argument(help="Artifacts that you have signed, by digest.")],
    key: Key = "",
    tenant: Tenant = DEFAULT_TENANT,
    as_json: AsJson = False,
) -> None:
    """Vouch for artifacts no more: nodes start them no more as soon as they hear of it."""

    async def work(api: Any) -> list[str]:
        return await _signing(api, lambda one: one.withdraw(tenant, digests, key)) or []

    gone = with_api(work)
    if as_json:
        show_json(msgspec.json.encode(gone))
    else:
        show(f"{len(gone)} of {len(digests)} were signed and are so no more")
    if len(gone) < len(set(digests)):
        raise RefusedByController(
            "what is not signed by you cannot be withdrawn: `tona artifact list` shows digests"
        )


async def sign_files(api: Any, files: Sequence[Any], key: str = "") -> str:
    """Sign files that were pushed; returns as `sign_new`."""
    return await sign_new(api, _wanted(files), key)


async def sign_new(
    api: Any, wanted: "Sequence[Wanted]", key: str = "", tenant: str = DEFAULT_TENANT
) -> str:
    """Sign what nobody has signed yet; returns the publisher, empty where nothing was to be done.

    Raises UserError where a signature is asked for and this user has no key that may.
    """

    def work(signing: "Signing") -> str:
        missing = signing.missing(tenant, wanted)
        return signing.sign(tenant, missing, key).name if missing else ""

    return await _signing(api, work) or "" if wanted else ""


async def _signing(api: Any, work: Any) -> Any:
    """Do something with the author's keys, again where another was faster; None: not asked for."""
    for left in reversed(range(SIGN_TRIES)):
        state: TrustState = await api.call("trust.show")
        if not state.required:
            return None
        try:
            return await asyncio.to_thread(_at_controller, state, work)
        except UserError as error:
            if not left or "sign again" not in str(error):
                raise
    return None


def _at_controller(state: TrustState, work: Any) -> Any:
    import httpx  # noqa: PLC0415 - slow to import

    from protocols.transport import tls  # noqa: PLC0415 - the same
    from tona.cli.api import target  # noqa: PLC0415 - the same
    from tona.publishing import TIMEOUT_S, Signing, keys_folder  # noqa: PLC0415 - the same

    here = settings()
    where = target(here)
    root = tls.load(Path(here.bundle.value).expanduser()).root_json if here.bundle.value else ""
    if not root:
        raise UserError(
            "your bundle carries no trust in artifacts: have it issued again with `tona ca issue`"
        )
    with httpx.Client(
        base_url=where.url, verify=where.tls or True, trust_env=False, timeout=TIMEOUT_S
    ) as http:
        return work(Signing(http, root.encode(), state, keys_folder()))


def repository(folder: Path | None) -> "Repository":
    """Open the trust in artifacts of an authority. Raises UserError."""
    return authority_at(folder).artifacts()


def _wanted(files: Sequence[Any]) -> "list[Wanted]":
    from tona.publishing import Wanted  # noqa: PLC0415 - slow to import

    return [Wanted(one.digest, one.size_bytes) for one in files]


def _say(publisher: str, digests: Sequence[str], as_json: bool) -> None:
    if as_json:
        show_json(msgspec.json.encode({"publisher": publisher, "digests": list(digests)}))
        return
    for one in digests:
        show(one)
    show(f"signed by {publisher}" if publisher else "nothing was left to sign")
