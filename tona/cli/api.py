"""The controller's operations over HTTP, typed; the one place where httpx stands."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
import msgspec
from msgspec import Struct

from controller.api import client
from controller.api.arguments import Request
from controller.records import ArtifactRecord
from protocols.errors import EnvironmentFailure, PeerError, UserError
from protocols.topics import Speaker
from protocols.transport import tls
from tona.bundle import File
from tona.cli.errors import RefusedByController
from tona.cli.settings import Settings, is_url

CONNECT_TIMEOUT_S: Final = 15.0
ANSWER_TIMEOUT_S: Final = 40.0
"""Above the time that the controller gives its roles."""
ANSWER_MAX_BYTES: Final = 256 << 20
"""Above the longest listing; what sends more is something else."""
STARTING_S: Final = 15.0
"""How long a controller that is starting is waited for: longer than it waits for its parts."""
KEPT_S: Final = 4.0
"""For so long an idle connection is used again: less than the controller keeps one
(`controller.api.server.KEEP_ALIVE_S`), so that the two seldom cross.
"""
CHUNK_BYTES: Final = 256 * 1024
TOKEN: Final = "tona-token"  # noqa: S105 - the name of a header
KINDS: Final = {".wasm": "wasm", ".onnx": "onnx", ".tar": "container", ".tgz": "container"}
_CONNECTS: Final = "connection.connect_tcp.started"
_ANSWERS: Final = "http11.receive_response_headers.complete"
"""Steps of a request as `httpcore` tells them."""
WATCH_TRIES: Final = 7
"""Failures in a row after which a watch gives up."""
WATCH_PAUSE_S: Final = 0.2
"""After the first failure; doubled with each."""


class Target(Struct, frozen=True):
    """Where the API is, and as whom."""

    url: str
    tls: ssl.SSLContext | None = None


def target(settings: Settings) -> Target:
    """Return where the settings point. Raises UserError."""
    api, context = settings.api, None
    if settings.bundle.value:
        bundle = tls.load(Path(settings.bundle.value).expanduser())
        if bundle.speaker is Speaker.NODE:
            raise UserError(
                f"{settings.bundle.value} is the bundle of the node {bundle.name!r}, for its "
                "device agent: make a client's with `tona ca issue NAME --kind client`"
            )
        context = tls.client_context(bundle)
        api = settings.reached(bundle.api_url)
    url = api.value.rstrip("/")
    if not is_url(url):
        raise UserError(f"{api.source}: {url!r} is no URL: write http://HOST:PORT")
    if url.startswith("https://") and context is None:
        raise UserError(
            f"{url} asks for a certificate: name this client's with --bundle "
            "(`tona ca issue NAME --kind client` makes one)"
        )
    return Target(url, context)


class Api:
    """One controller; `async with` opens and closes the connections."""

    def __init__(self, where: Target) -> None:
        self.url = where.url
        # Without a bundle the scheme is plain http; this context trusts nobody.
        verify = where.tls or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        kept = httpx.Limits(keepalive_expiry=KEPT_S)
        try:
            self._http = _connections(where.url, verify, kept)
            self._fresh = _connections(where.url, verify, httpx.Limits(max_keepalive_connections=0))
            """Uses no connection twice: for what may not be asked twice."""
        except httpx.InvalidURL as error:
            raise UserError(f"{where.url!r} is no URL ({error}): write http://HOST:PORT") from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.aclose()
        await self._fresh.aclose()

    async def call(self, operation: str, /, **arguments: Any) -> Any:
        """Perform an operation and return its typed result.

        Raises UserError (a wrong argument), RefusedByController, EnvironmentFailure.
        """
        status, body, _ = await self._perform(operation, arguments)
        return _answer(operation, status, body)

    async def raw(self, operation: str, /, **arguments: Any) -> bytes:
        """Perform an operation and return the JSON of its result; raises as `call`."""
        status, body, _ = await self._perform(operation, arguments)
        _answer(operation, status, body)
        return body

    async def listing(self, operation: str, /, **arguments: Any) -> tuple[Any, str]:
        """Return a result and the token from which a watch goes on; raises as `call`."""
        status, body, token = await self._perform(operation, arguments)
        return _answer(operation, status, body), token

    async def watch(self, kind: str, token: str) -> AsyncGenerator[client.Change | None, None]:
        """Yield what changes in a kind after a token; None: list again, history is gone.

        Reconnects by itself. Raises EnvironmentFailure when that fails WATCH_TRIES times in a row.
        """
        failures = 0
        while True:
            try:
                async for event in self._events(kind, token):
                    failures = 0
                    token = event.token or token
                    if event.event == "change":
                        yield client.change(kind, event)
                    elif event.event == "resync":
                        yield None
            except EnvironmentFailure:
                failures += 1
                if failures >= WATCH_TRIES:
                    raise
                await asyncio.sleep(WATCH_PAUSE_S * 2 ** (failures - 1))

    async def push(self, file: File, sent: Callable[[int], None]) -> ArtifactRecord:
        """Store an artifact; `sent` hears the bytes of each piece. Raises as `call`."""
        hex_ = file.digest.removeprefix("sha256:")
        parameters = {"name": file.name, "media": KINDS.get(file.path.suffix, "data")}

        async def pieces() -> AsyncIterator[bytes]:
            with file.path.open("rb") as content:
                while piece := content.read(CHUNK_BYTES):
                    yield piece
                    sent(len(piece))

        try:
            # What is read once cannot be sent again.
            response = await self._fresh.put(
                f"/v1/artifacts/{hex_}",
                params=parameters,
                content=pieces(),
                headers={"content-length": str(file.size_bytes)},
            )
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        record: ArtifactRecord = _answer("artifact.put", response.status_code, response.content)
        return record

    async def _perform(self, operation: str, arguments: dict[str, Any]) -> tuple[int, bytes, str]:
        request = client.call(operation, **arguments)
        again = client.find(operation).idempotent
        loop = asyncio.get_running_loop()
        end_s = loop.time() + STARTING_S
        while True:
            status, body, headers = await self._ask(request, again=again)
            pause_s = _pause_s(status, headers)
            if not pause_s or loop.time() + pause_s > end_s:
                return status, body, headers.get(TOKEN, "")
            await asyncio.sleep(pause_s)

    async def _ask(self, request: Request, *, again: bool) -> tuple[int, bytes, httpx.Headers]:
        """Ask; `again` says that asking twice does what asking once does."""
        try:
            if again:
                # A kept connection that the controller closes at this moment answers nothing.
                with suppress(_Crossed):
                    return await self._over(self._http, request)
            return await self._over(self._fresh, request)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    async def _over(
        self, http: httpx.AsyncClient, request: Request
    ) -> tuple[int, bytes, httpx.Headers]:
        """Ask over a client's connections. Raises httpx.HTTPError, PeerError, _Crossed."""
        headers = {"content-type": "application/json"} if request.body is not None else {}
        steps: set[str] = set()

        async def note(step: str, _: object) -> None:
            steps.add(step)

        body = bytearray()
        try:
            async with http.stream(
                request.method,
                request.path,
                content=request.body,
                headers=headers,
                extensions={"trace": note},
            ) as response:
                async for piece in response.aiter_bytes():
                    body += piece
                    if len(body) > ANSWER_MAX_BYTES:
                        raise PeerError(f"what answers at {self.url} is no controller: no end came")
        except (httpx.NetworkError, httpx.RemoteProtocolError):
            if steps & {_CONNECTS, _ANSWERS}:
                raise
            raise _Crossed from None
        return response.status_code, bytes(body), response.headers

    async def _events(self, kind: str, token: str) -> AsyncIterator[client.Event]:
        request = client.call("watch", kind=kind, **{"from": token})
        reader = client.EventReader()
        try:
            async with self._http.stream(request.method, request.path) as response:
                if response.status_code >= client.OK_BELOW:
                    _answer("watch", response.status_code, await response.aread())
                async for line in response.aiter_lines():
                    event = reader.feed(line)
                    if event is not None:
                        yield event
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: httpx.HTTPError) -> EnvironmentFailure:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            return EnvironmentFailure(
                f"what answers at {self.url} is not the controller of this bundle "
                f"({cause.verify_message}): name the bundle that its authority has issued, "
                "and the address that its own bundle names"
            )
        why = str(error) or type(error).__name__
        plain = isinstance(error, httpx.RemoteProtocolError) and self.url.startswith("http://")
        return EnvironmentFailure(
            f"no controller answers at {self.url} ({why}): start one with `tona up`, "
            "or name another with --api or TONA_API"
            + ("; one with certificates answers at https:// alone" if plain else "")
        )


async def ailing(url: str, within_s: float) -> str | None:
    """Return why a controller without certificates cannot serve, empty where it can.

    None: it does not say, within the time.
    """
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=within_s) as http:
            answer = await http.get(f"{url}/healthz")
            return "" if answer.is_success else str(answer.json()["error"]["text"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return None


class _Crossed(Exception):
    """A kept connection ended before any answer came."""


def _connections(url: str, verify: ssl.SSLContext, limits: httpx.Limits) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=url,
        verify=verify,
        timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
        limits=limits,
        # A proxy of the environment has nothing to do with a controller.
        trust_env=False,
    )


def _pause_s(status: int, headers: httpx.Headers) -> float:
    """Return after how long the controller wants to be asked again; 0: it does not."""
    given = headers.get("retry-after", "") if status == httpx.codes.SERVICE_UNAVAILABLE else ""
    return float(given) if given.isascii() and given.isdigit() else 0.0


def _answer(operation: str, status: int, body: bytes) -> Any:
    try:
        return client.answer(operation, status, body)
    except UserError as error:
        raise RefusedByController(str(error)) from None


def pretty(body: bytes) -> str:
    """Return JSON for a person's eyes. Raises PeerError."""
    try:
        return msgspec.json.format(body, indent=2).decode()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PeerError(f"the controller's answer is no JSON: {error}") from None
