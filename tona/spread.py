"""The client of a controller whose cells are spread over several processes and brokers.

It asks the controller in which cell a service takes its requests, and holds a client for each cell
that it needs. A request that waits for long is looked after: when its service has gone over to
another cell, it is sent there under a new id, and answered once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from protocols import topics
from protocols.errors import Blame, EnvironmentFailure
from protocols.messages.invocation import Failure, FailureCode
from protocols.messages.quality import PRIORITY_DEFAULT
from protocols.transport.session import DEFAULT_TENANT
from tona import values
from tona.client import CONNECT_TIMEOUT_S, DEADLINE_S, AsyncClient, check_deadline
from tona.errors import CannotConnect, ClientClosed, ServiceUnavailable, bad_input, error_of
from tona.job_client import ACCEPT_S, RUN_S, Job
from tona.target import LOOK_S, Target, asked, at_cell
from tona.where import CellFound, Where

LOOK_AGAIN_S: Final = 2.0
"""A request that waits has its service looked for again this often."""
LOOK_PAUSE_S: Final = 0.25
"""Between two looks for a service that has no cell yet, or when the controller is away."""
UNKNOWN_S: Final = 3.0
"""How long a controller that does not know a service is not believed: it may just be starting."""
GRACE_S: Final = 0.5
"""So much longer than the broker a controller may take to say what cells there are, at least..."""
GRACE: Final = 4.0
"""...or so many times as long again, up to `LOOK_S` in all."""
CELLS_MAX: Final = 1024
"""Cells that one client is connected to."""

_R = TypeVar("_R")


class SpreadClient(AsyncClient):
    """Invokes services wherever they are; made by `connect`, for one event loop."""

    def __init__(self, target: Target, *, tenant: str = DEFAULT_TENANT) -> None:
        super().__init__(target, tenant=tenant)
        self._target = target
        self._where = Where(target.api_url, target.context)
        self._places: dict[str, CellFound] = {}
        self._clients: dict[CellFound, AsyncClient] = {}
        self._opening = asyncio.Lock()

    async def open(self, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        """Connect to the broker; meanwhile ask if there are other cells. Raises CannotConnect."""
        if not self._target.unasked:
            await super().open(timeout_s)
            return
        limit, began_s = asyncio.timeout(LOOK_S), self._loop.time()
        asking = asyncio.create_task(asked(self._target, limit))
        try:
            await super().open(timeout_s)
            now_s = self._loop.time()
            # At its end it may yet let go of its connection.
            if not (asking.done() or limit.expired()):
                patience_s = max(GRACE_S, GRACE * (now_s - began_s))
                limit.reschedule(min(began_s + LOOK_S, now_s + patience_s))
            self._target = await asking
        finally:
            asking.cancel()

    async def close(self) -> None:
        """End every open request with ClientClosed, and every connection; idempotent."""
        clients = list(self._clients.values())
        self._clients.clear()
        await asyncio.gather(*(one.close() for one in clients))
        self._where.close()
        await super().close()

    async def invoke(
        self,
        service: str,
        inputs: Mapping[str, Any],
        *,
        deadline_s: float = DEADLINE_S,
        priority: int = PRIORITY_DEFAULT,
    ) -> values.Result:
        """Run a service once and return its answer; see `AsyncClient.invoke`."""
        if not self._target.api_url:
            return await super().invoke(service, inputs, deadline_s=deadline_s, priority=priority)

        async def once(client: AsyncClient, left_s: float) -> values.Result:
            return await client.invoke(service, inputs, deadline_s=left_s, priority=priority)

        return await self._wherever(service, check_deadline(deadline_s), once)

    async def publish(
        self, service: str, inputs: Mapping[str, Any], *, deadline_s: float = DEADLINE_S
    ) -> str:
        """Publish values on the inputs of a service; see `AsyncClient.publish`."""
        if not self._target.api_url:
            return await super().publish(service, inputs, deadline_s=deadline_s)

        async def once(client: AsyncClient, left_s: float) -> str:
            return await client.publish(service, inputs, deadline_s=left_s)

        return await self._wherever(service, check_deadline(deadline_s), once)

    async def submit(
        self,
        service: str,
        inputs: Mapping[str, Any],
        *,
        job: str = "",
        deadline_s: float = 0.0,
        run_s: float = RUN_S,
        priority: int = PRIORITY_DEFAULT,
        accept_s: float = ACCEPT_S,
    ) -> Job:
        """Submit a job and return when it can no more be lost; see `AsyncClient.submit`."""
        if not self._target.api_url:
            return await super().submit(
                service,
                inputs,
                job=job,
                deadline_s=deadline_s,
                run_s=run_s,
                priority=priority,
                accept_s=accept_s,
            )
        # One name wherever it is tried, or it could be done twice.
        job = job or self.job_name()

        async def once(client: AsyncClient, left_s: float) -> Job:
            return await client.submit(
                service,
                inputs,
                job=job,
                deadline_s=deadline_s,
                run_s=run_s,
                priority=priority,
                accept_s=left_s,
            )

        return await self._wherever(service, accept_s, once)

    def job(self, service: str, job: str) -> Job:
        """Return the handle of a job that was submitted before, in the cell last known."""
        cell = self._places.get(service)
        client = self._clients.get(cell) if cell is not None else None
        return client.job(service, job) if client is not None else super().job(service, job)

    async def _wherever(
        self,
        service: str,
        within_s: float,
        once: Callable[[AsyncClient, float], Awaitable[_R]],
    ) -> _R:
        """Do something at the cell of a service, and again elsewhere when it has gone there."""
        if not topics.valid_name(service):
            raise bad_input(f"{service!r} cannot name a service")
        due_s = self._loop.time() + within_s
        while True:
            cell, client = await self._at(service, due_s)
            left_s = max(0.001, due_s - self._loop.time())
            task = asyncio.ensure_future(once(client, left_s))
            try:
                while not task.done():
                    await asyncio.wait({task}, timeout=LOOK_AGAIN_S)
                    if not task.done() and await self._gone(service, cell):
                        break
                else:
                    try:
                        return task.result()
                    except ServiceUnavailable:
                        if self._loop.time() >= due_s or not await self._gone(service, cell):
                            raise
            finally:
                if not task.done():
                    task.cancel()
                    await asyncio.wait({task})

    async def _gone(self, service: str, cell: CellFound) -> bool:
        """Whether a service is in another cell than that now."""
        try:
            place = await self._where.look(service)
        except EnvironmentFailure:
            return False
        if place.cell is None:
            return False
        if place.cell == cell:
            if cell in self._clients:
                # A route may have led it to another cell, from where the service has come back.
                self._clients[cell].served_in(service, cell.cell)
            return False
        self._places[service] = place.cell
        return True

    async def _at(self, service: str, due_s: float) -> tuple[CellFound, AsyncClient]:
        """Return the client of a service's cell. Raises ServiceUnavailable when there is none."""
        told, code = "its cell is not known", FailureCode.NOT_READY
        believed_s = self._loop.time() + UNKNOWN_S
        while True:
            cell = self._places.get(service)
            try:
                if cell is None:
                    place = await self._where.look(service)
                    cell = place.cell
                    told, code = "its tasks have no place yet", FailureCode.NOT_READY
                    if not place.known:
                        told, code = f"there is no service {service!r}", FailureCode.NO_SERVICE
                if cell is not None:
                    self._places[service] = cell
                    return cell, await self._client(cell, due_s)
            except EnvironmentFailure as error:
                told = str(error)
            last_s = min(due_s, believed_s) if code is FailureCode.NO_SERVICE else due_s
            if self._loop.time() + LOOK_PAUSE_S >= last_s:
                raise error_of(Failure(code, Blame.ENVIRONMENT, told, retryable=True))
            await asyncio.sleep(LOOK_PAUSE_S)

    async def _client(self, cell: CellFound, due_s: float) -> AsyncClient:
        async with self._opening:
            if not self._attachment.running:
                raise ClientClosed("the client is closed: connect anew")
            client = self._clients.get(cell)
            if client is not None:
                return client
            if len(self._clients) >= CELLS_MAX:
                raise CannotConnect(f"this client is connected to {CELLS_MAX} cells already")
            broker = urlsplit(cell.broker)
            at = at_cell(
                cell.cell,
                broker.hostname or "",
                broker.port or 0,
                identity=self._settings.identity,
                context=self._settings.tls,
            )
            client = AsyncClient(at, tenant=self._tenant)
            client.agent = self.agent
            try:
                await client.open(max(0.1, due_s - self._loop.time()))
            except CannotConnect:
                await client.close()
                raise
            self._clients[cell] = client
            return client
