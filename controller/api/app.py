"""The HTTP application: a route for each line of the table of operations, and little else.

Every answer is JSON, bytes or an event stream; every failure is `{error: {blame, text, field?}}`.
`Tona-Cause` follows a request through all layers; `Tona-Token` on a listing is where a watch goes
on.
"""

import asyncio
import ipaddress
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
from msgspec import Struct
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from controller.api.access import Identity, authorise, identify
from controller.api.arguments import parse, takes_body
from controller.api.body import whole
from controller.api.bulk import Bulk, Collect, Recorder
from controller.api.errors import CONFLICT, STATUS, Refused, body_of, status_of
from controller.api.metrics import CONTENT_TYPE, Labels, Metric, render
from controller.api.named import to_json
from controller.api.openapi import describe
from controller.api.operation import Effect, Operation, Transfer
from controller.api.operations import TABLE, SystemInfo, Watch
from controller.api.reads import check_named, read
from controller.api.stored import Content, PublishedBy, PutArtifact, TrustFile
from controller.api.trusting import Trusting
from controller.api.watch import Watchers
from controller.decider import Answer
from controller.registry import LiveRegistry
from protocols.errors import Blame, TonaBug, TonaError
from protocols.submission import near

if TYPE_CHECKING:
    from controller.trust.repository import Repository

CALL_TIMEOUT_S: Final = 30.0
"""How long a role may take to answer an operation."""
CAUSE_MAX_LENGTH: Final = 128
RETRY_AFTER_S: Final = 1
"""When to ask a controller again that is starting."""
INFO: Final = "system.info"
"""Tells where clients connect, which is known from the beginning."""
TRUST: Final = "trust.show"
SLICE: Final = 256
"""Things of a listing that are encoded at once, in about 3 ms."""

Call = Callable[[str, Struct, str, str], Awaitable[Answer]]
"""Hands an operation (its name, arguments, tenant, cause) to the role that serves it."""


Note = Callable[[Operation, tuple[str, str], "Struct | None", str, str, str], Awaitable[None]]


class Doors(Struct, frozen=True):
    """What the host gives the API."""

    call: Call
    record_artifact: Recorder
    info: Callable[[], SystemInfo]
    metrics: Callable[[], Iterable[Metric]] = tuple
    health: Callable[[], str] = str
    """Empty, or a sentence on why this controller cannot serve."""
    revoked: Callable[[str], bool] = lambda _: False
    """Whether a certificate, by its serial, is out of force."""
    starting: Callable[[], str] = str
    """Empty, or a sentence on why this controller does not know everything yet."""
    note: Note | None = None
    """Keeps who has asked for what, and what came of it; None: nobody does."""
    collect: Collect | None = None
    """How artifacts that nobody needs are collected; None: they stay."""
    trust: "Callable[[], Repository] | None" = None
    """Opens the trust in artifacts; None where nobody has to sign."""


class Api:
    """Serves the table of operations; `application` is the ASGI app."""

    def __init__(
        self, registry: LiveRegistry, doors: Doors, folder: Path, hosts: frozenset[str] | None
    ) -> None:
        self.bulk = Bulk(folder, registry, doors.record_artifact, collect=doors.collect)
        self.trusting = Trusting(doors.trust)
        self.watchers = Watchers(registry)
        self._registry = registry
        self._doors = doors
        self._hosts = hosts
        self._requests: Counter[tuple[str, int]] = Counter()
        self.application = Starlette(
            routes=[
                *(Route(one.path, self._endpoint(one), methods=[one.method]) for one in TABLE),
                Route("/v1/openapi.json", self._openapi),
                Route("/metrics", self._metrics),
                Route("/healthz", self._health),
            ],
            exception_handlers={HTTPException: self._no_route, Exception: self._bug},
        )
        self.application.router.redirect_slashes = False

    def _endpoint(self, operation: Operation) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            cause = _cause(request)
            verdict, reason = "ok", ""
            try:
                self._check_host(request)
                response = await self._serve(operation, request, cause)
            except TonaError as error:
                response = _failure(error)
                verdict, reason = error.blame.value, str(error)
            who = getattr(request.state, "who", ("", ""))
            arguments = getattr(request.state, "arguments", None)
            if self._doors.note is not None:
                await self._doors.note(operation, who, arguments, cause, verdict, reason)
            response.headers["tona-cause"] = cause
            self._requests[operation.name, response.status_code] += 1
            return response

        return endpoint

    async def _serve(self, operation: Operation, request: Request, cause: str) -> Response:
        identity = identify(request.scope, self._doors.revoked)
        request.state.who = identity.name, identity.tenant
        authorise(operation, identity)
        if operation.transfer is not Transfer.BYTES and operation.name != INFO:
            self._check_ready()
        body = b""
        if operation.transfer is Transfer.JSON:
            if takes_body(operation):
                _check_json(request)
            body = await whole(request)
        query = request.query_params.multi_items()
        if operation.transfer is Transfer.EVENTS and "last-event-id" in request.headers:
            # A browser that reconnects repeats its first query, but knows better by now.
            query = [one for one in query if one[0] != "from"]
            query.append(("from", request.headers["last-event-id"]))
        arguments = parse(operation, request.path_params, query, body)
        request.state.arguments = arguments
        match operation.transfer:
            case Transfer.EVENTS:
                if request.method == "HEAD":
                    raise Refused(405, "a watch has no HEAD")
                return self.watchers.open(cast("Watch", arguments))
            case Transfer.BYTES:
                return await self._move(operation, request, arguments, identity, cause)
            case Transfer.JSON:
                return await self._perform(operation, arguments, identity, cause)

    async def _perform(
        self, operation: Operation, arguments: Struct, identity: Identity, cause: str
    ) -> Response:
        # Taken before the listing: a change that comes in between is told twice, never not at all.
        token = self._registry.model.token
        if operation.effect is Effect.WRITE or operation.asked:
            check_named(operation, arguments, self._registry.model)
            value = await self._call(operation, arguments, identity.tenant, cause)
        elif operation.name == INFO:
            value = self._doors.info()
        elif operation.name == TRUST:
            value = await self.trusting.state()
        else:
            value = read(operation, arguments, self._registry.model)
        body = await _encode_slowly(operation, value)
        return _json(body, headers={"tona-token": token})

    async def _call(self, operation: Operation, arguments: Struct, tenant: str, cause: str) -> Any:
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                answer = await self._doors.call(operation.name, arguments, tenant, cause)
        except TimeoutError:
            raise Refused(
                504,
                f"{operation.name} was not answered within {CALL_TIMEOUT_S:.0f} s; it may still "
                "happen, and asking again does no harm",
                blame=Blame.ENVIRONMENT,
            ) from None
        if answer.error:
            blame = answer.blame or Blame.OURS
            status = CONFLICT if answer.busy else STATUS[blame]
            raise Refused(status, answer.error, blame=blame)
        return answer.value

    async def _move(
        self,
        operation: Operation,
        request: Request,
        arguments: Struct,
        identity: Identity,
        cause: str,
    ) -> Response:
        bulk, trusting, stored = self.bulk, self.trusting, cast("Content", arguments)
        whole = request.method == "GET" and "range" not in request.headers
        match operation.name:
            case "artifact.get":
                return await bulk.get(bulk.artifacts, "artifact", stored.hex, whole=whole)
            case "blob.get":
                return await bulk.get(bulk.blobs, "blob", stored.hex, whole=whole)
            case "trust.get":
                return await trusting.get(cast("TrustFile", arguments))
            case "artifact.put":
                put = cast("PutArtifact", arguments)
                value: Struct
                value, new = await bulk.put_artifact(request, put, identity.tenant, cause)
            case "blob.put":
                value, new = await bulk.put_blob(request, stored)
            case "trust.sign":
                value, new = await trusting.sign(request, cast("PublishedBy", arguments)), True
            case _:
                raise TonaBug(f"nobody serves {operation.name}")
        return _json(_encode(operation, value), 201 if new else 200)

    def _check_ready(self) -> None:
        """Refuse what would be answered from half of what there is."""
        reason = self._doors.starting()
        if reason:
            raise Refused(503, reason, blame=Blame.ENVIRONMENT, retry_after_s=RETRY_AFTER_S)

    def _check_host(self, request: Request) -> None:
        """Refuse a web page that reaches loopback under a name of its own (DNS rebinding)."""
        if self._hosts is None:
            return
        name = request.url.hostname or ""
        if name not in self._hosts and not is_loopback(name):
            raise Refused(421, f"this controller is not {name[:80]!r}: call it by its address")

    async def _openapi(self, _request: Request) -> Response:
        return _json(msgspec.json.encode(describe()))

    async def _metrics(self, _request: Request) -> Response:
        requests: dict[Labels, float] = {
            (("operation", name), ("status", str(status))): float(count)
            for (name, status), count in self._requests.items()
        }
        own = [
            Metric("tona_api_requests_total", "Requests answered.", requests, "counter"),
            Metric("tona_api_watchers", "Watchers connected.", {(): self.watchers.count}),
            Metric(
                "tona_api_watchers_dropped_total",
                "Watchers let go because they were too slow.",
                {(): self.watchers.dropped},
                "counter",
            ),
            Metric("tona_blobs_bytes", "Blobs kept.", {(): self.bulk.retention.size_bytes}),
        ]
        text = render([*own, *self._doors.metrics()])
        return Response(text, headers={"content-type": CONTENT_TYPE})

    async def _health(self, _request: Request) -> Response:
        reason = self._doors.health()
        if reason:
            return _failure(Refused(503, reason, blame=Blame.ENVIRONMENT))
        return _json(b'{"status":"ok"}')

    async def _no_route(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        path = request.url.path[:200]
        if status == 405:  # noqa: PLR2004 - HTTP's number for a wrong method
            refused = Refused(status, f"{path} does not know {request.method}")
        else:
            refused = Refused(
                status, f"there is no {path}{near(path, {one.path for one in TABLE})}"
            )
        response = _failure(refused)
        response.headers.update(getattr(error, "headers", None) or {})
        return response

    async def _bug(self, _request: Request, error: Exception) -> Response:
        # Starlette raises it again after this answer, so that the log tells the whole.
        return _failure(TonaBug(f"a fault of the controller ({type(error).__name__}); see its log"))


def is_loopback(host: str) -> bool:
    """Whether a host names this machine and nothing that another can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _cause(request: Request) -> str:
    given = request.headers.get("tona-cause", "")
    if given and len(given) <= CAUSE_MAX_LENGTH and given.isascii() and given.isprintable():
        return given
    return f"api-{secrets.token_hex(6)}"


def _check_json(request: Request) -> None:
    """Insist on JSON: a form of a foreign web page cannot send it without asking first."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise Refused(415, f"the body must be application/json, not {media[:80] or 'unnamed'}")


def _encode(operation: Operation, value: Any) -> bytes:
    try:
        return to_json(value, operation.result)
    except msgspec.ValidationError as error:
        raise TonaBug(f"the answer to {operation.name} is of a wrong form: {error}") from error


async def _encode_slowly(operation: Operation, value: Any) -> bytes:
    """Encode a long listing in slices: the deciders share this loop and do not wait for it."""
    if not isinstance(value, list):
        return _encode(operation, value)
    slices = []
    for start in range(0, len(value), SLICE):
        slices.append(_encode(operation, value[start : start + SLICE])[1:-1])
        await asyncio.sleep(0)
    return b"[%b]" % b",".join(slices)


def _json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, headers, "application/json")


def _failure(error: TonaError) -> Response:
    wait_s = error.retry_after_s if isinstance(error, Refused) else 0
    headers = {"retry-after": str(wait_s)} if wait_s else None
    return _json(body_of(error), status_of(error), headers)
