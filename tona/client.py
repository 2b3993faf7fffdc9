"""The client of a cell: the shell around `tona.requests`, with one MQTT session and one store.

A warm request is one message to the node and one back: the route is known, the connection stands.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from protocols import topics
from protocols.errors import Blame, EnvironmentFailure
from protocols.messages import Accepted, Cancel, Result, Route, RouteRequest
from protocols.messages.invocation import Blob, Failure, FailureCode, Value
from protocols.topics import Channel, Party, Topic
from protocols.transport.session import DEFAULT_TENANT, Inbound, Session
from tona import values
from tona.errors import CannotConnect, ClientClosed, InvocationError, bad_input, error_of
from tona.events import (
    AskRoute,
    Cancelled,
    Event,
    Finish,
    Heard,
    Online,
    SendCancel,
    SendInvoke,
    Submit,
    Unsent,
    Upload,
    Uploaded,
    Wake,
    Woken,
)
from tona.requests import Requests
from tona.store import Store
from tona.streams import stream
from tona.target import Target, find

DEADLINE_S: Final = 30.0
"""For a request, when the caller names none."""
DEADLINE_MAX_S: Final = 3600.0
CONNECT_TIMEOUT_S: Final = 15.0
IN_FLIGHT: Final = 8


@asynccontextmanager
async def connect(
    where: str | Path,
    *,
    tenant: str = DEFAULT_TENANT,
    timeout_s: float = CONNECT_TIMEOUT_S,
) -> AsyncIterator["AsyncClient"]:
    """Connect to the cell whose controller is at `where` (`http://...`), or that a bundle names.

    Raises CannotConnect when there is no connection within the time, and UserError.
    """
    client = AsyncClient(await find(where), tenant=tenant)
    try:
        await client.open(timeout_s)
        yield client
    finally:
        await client.close()


class AsyncClient:
    """Invokes the services of one cell; made by `connect`, for one event loop."""

    def __init__(self, target: Target, *, tenant: str = DEFAULT_TENANT) -> None:
        settings = target.settings
        self._cell = settings.cell
        self._tenant = tenant
        reply = topics.build(self._cell, Party.CLIENT, settings.identity, Channel.REPLY)
        self._filters = [str(reply)]
        self._core = Requests(str(reply))
        self._store = Store(target.context)
        self._session = Session(
            settings,
            subscriptions=lambda: self._filters,
            on_message=self._message,
            on_connected=self._connected,
            on_disconnected=self._disconnected,
            next_incarnation=self._next_incarnation,
        )
        self._loop = asyncio.get_running_loop()
        self._running: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._prefix = os.urandom(6).hex()
        self._numbers = count(1)
        self._asked: dict[str, Topic] = {}
        self._inboxes: dict[str, Topic] = {}
        self._futures: dict[str, asyncio.Future[Finish]] = {}
        self._contents: dict[str, dict[str, values.Content]] = {}
        self._uploads: dict[str, asyncio.Task[None]] = {}
        self._on: dict[type[Struct], Callable[[Any], None]] = {
            SendInvoke: self._send_invoke,
            SendCancel: self._send_cancel,
            AskRoute: self._ask_route,
            Upload: self._upload,
            Finish: self._finish,
            Wake: self._wake,
        }

    async def open(self, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        """Connect to the broker. Raises CannotConnect."""
        self._running = self._loop.create_task(self._session.run())
        self._running.add_done_callback(self._ended)
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
        except TimeoutError:
            reason = self._session.last_failure or "no connection to the broker"
            raise CannotConnect(f"{reason} (tried for {timeout_s:g} s)") from None

    async def close(self) -> None:
        """End every open request with ClientClosed, and the connection; idempotent."""
        running, self._running = self._running, None
        if self._timer is not None:
            self._timer.cancel()
        for upload in self._uploads.values():
            upload.cancel()
        self._abandon(ClientClosed("the client was closed while the request was under way"))
        if running is not None:
            await self._session.close()
            await asyncio.wait([running])
        self._store.close()

    async def invoke(
        self, service: str, inputs: Mapping[str, Any], *, deadline_s: float = DEADLINE_S
    ) -> values.Result:
        """Run a service once and return its answer.

        Inputs are bytes, text, numpy arrays or `tona.Tensor`, by the names of the service's
        inputs. Raises BadInput, ServiceUnavailable, DeadlineExceeded, Refused or TaskFailed; all
        of them are InvocationError.
        """
        begin_s = self._loop.time()
        if self._running is None or self._running.done():
            raise ClientClosed("the client is closed: connect anew")
        if not 0 < deadline_s <= DEADLINE_MAX_S:
            raise bad_input(f"deadline_s is {deadline_s}: give more than 0, up to {DEADLINE_MAX_S}")
        if not topics.valid_name(service):
            raise bad_input(f"{service!r} cannot name a service")
        if values.is_large(inputs):
            packed, contents = await self._store.run(values.pack, inputs)
        else:
            packed, contents = values.pack(inputs)
        request = f"{self._prefix}-{next(self._numbers)}"
        due_s = begin_s + deadline_s
        finish = await self._run(
            Submit(request, service, packed, due_s * 1000, bool(contents)), contents
        )
        if finish.failure is not None:
            raise error_of(finish.failure)
        outputs = finish.outputs
        unpacked = {
            name: values.unpack(one.dtype, one.shape, one.data)
            for name, one in outputs.items()
            if not isinstance(one, Blob)
        }
        if len(unpacked) < len(outputs):
            unpacked |= await self._fetch(outputs, finish.urls, due_s)
        return values.Result(
            unpacked, finish.timings, finish.attempts, (self._loop.time() - begin_s) * 1000
        )

    def stream(
        self,
        service: str,
        inputs: AsyncIterable[Mapping[str, Any]] | Iterable[Mapping[str, Any]],
        *,
        in_flight: int = IN_FLIGHT,
        ordered: bool = True,
        deadline_s: float = DEADLINE_S,
    ) -> AsyncIterator[values.Result | InvocationError]:
        """Run a service for each input, `in_flight` of them at a time, and yield the answers.

        Answers come in the order of the inputs, or as they are there. An input that was not served
        yields its InvocationError, and the stream goes on.
        """

        async def one(item: Mapping[str, Any]) -> values.Result:
            return await self.invoke(service, item, deadline_s=deadline_s)

        return stream(one, inputs, in_flight, ordered)

    # One request.

    async def _run(self, submit: Submit, contents: dict[str, values.Content]) -> Finish:
        request = submit.request
        future: asyncio.Future[Finish] = self._loop.create_future()
        self._futures[request] = future
        if contents:
            self._contents[request] = contents
        try:
            self._do(submit)
            return await future
        finally:
            del self._futures[request]
            if contents:
                del self._contents[request]
                upload = self._uploads.pop(request, None)
                if upload is not None:
                    upload.cancel()
            if not future.done() or future.cancelled():
                self._do(Cancelled(request))

    async def _fetch(
        self, outputs: Mapping[str, Value], urls: tuple[str, ...], due_s: float
    ) -> dict[str, Any]:
        fetched: dict[str, Any] = {}
        try:
            async with asyncio.timeout_at(due_s):
                for name, one in outputs.items():
                    if isinstance(one, Blob):
                        data = await self._store.get(urls, one.digest, one.size_bytes)
                        fetched[name] = values.unpack(one.dtype, one.shape, data)
        except TimeoutError:
            text = "the deadline came while the outputs were fetched"
            raise error_of(
                Failure(FailureCode.DEADLINE, Blame.ENVIRONMENT, text, retryable=True)
            ) from None
        except EnvironmentFailure as error:
            text = f"the outputs could not be fetched: {error}"
            raise error_of(
                Failure(FailureCode.FETCH, Blame.ENVIRONMENT, text, retryable=True)
            ) from None
        return fetched

    # Between the core and the world.

    def _do(self, event: Event) -> None:
        for command in self._core.handle(event, self._loop.time() * 1000):
            self._on[type(command)](command)

    def _send_invoke(self, command: SendInvoke) -> None:
        inbox = self._inbox(command.node)
        request = command.body.request
        if not self._session.send(inbox, command.body, cause=request, tenant=self._tenant):
            self._do(Unsent(request))

    def _send_cancel(self, command: SendCancel) -> None:
        body = Cancel(command.request)
        self._session.send(
            self._inbox(command.node), body, cause=command.request, tenant=self._tenant
        )

    def _inbox(self, node: str) -> Topic:
        inbox = self._inboxes.get(node)
        if inbox is None:
            inbox = topics.build(self._cell, Party.NODE, node, Channel.INVOKE)
            self._inboxes[node] = inbox
        return inbox

    def _ask_route(self, command: AskRoute) -> None:
        service = command.service
        if service not in self._asked:
            follow = topics.build(self._cell, Party.SERVICE, service, Channel.ROUTE)
            self._filters.append(str(follow))
            self._session.resubscribe()
            ask = topics.build(self._cell, Party.SERVICE, service, Channel.REQUEST)
            self._asked[service] = ask
        question = RouteRequest(f"{self._prefix}-{service}", service, self._filters[0])
        # A question that cannot be sent is asked again by the core.
        self._session.send(
            self._asked[service], question, cause=question.request, tenant=self._tenant
        )

    def _upload(self, command: Upload) -> None:
        request = command.request
        self._uploads[request] = self._loop.create_task(
            self._put(request, command.urls, self._contents[request])
        )

    async def _put(
        self, request: str, urls: tuple[str, ...], contents: dict[str, values.Content]
    ) -> None:
        try:
            for digest, content in contents.items():
                await self._store.put(urls, digest, content)
        except EnvironmentFailure as error:
            self._do(Uploaded(request, str(error)))
        else:
            self._do(Uploaded(request))

    def _finish(self, command: Finish) -> None:
        future = self._futures.get(command.request)
        if future is not None and not future.done():
            future.set_result(command)

    def _wake(self, command: Wake) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(command.at_ms / 1000, self._woken)

    def _woken(self) -> None:
        self._timer = None
        self._do(Woken())

    # What the session reports.

    def _message(self, inbound: Inbound) -> None:
        body = inbound.frame.body
        if isinstance(body, Result | Accepted | Route):
            self._do(Heard(body))

    def _connected(self, _incarnation: int) -> None:
        self._ready.set()
        self._do(Online(connected=True))

    def _disconnected(self, _reason: str) -> None:
        self._do(Online(connected=False))

    def _next_incarnation(self) -> int:
        # Above that of every earlier process under the same certificate.
        return max(self._session.incarnation + 1, time.time_ns() // 1_000_000)

    def _ended(self, running: asyncio.Task[None]) -> None:
        if not running.cancelled() and (fault := running.exception()) is not None:
            self._abandon(fault)

    def _abandon(self, error: BaseException) -> None:
        for future in self._futures.values():
            if not future.done():
                future.set_exception(error)
