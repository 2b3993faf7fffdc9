"""The client for code without an event loop: the same calls, each waits for its answer."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import msgspec

from protocols.messages import JobEnded, JobStatus
from protocols.messages.quality import PRIORITY_DEFAULT
from protocols.transport.session import DEFAULT_TENANT
from tona.client import CONNECT_TIMEOUT_S, DEADLINE_S, IN_FLIGHT, AsyncClient, connect
from tona.errors import ClientClosed, InvocationError
from tona.job_client import ACCEPT_S, RUN_S, Job
from tona.values import Result

_T = TypeVar("_T")


def connect_blocking(
    where: str | Path,
    *,
    tenant: str = DEFAULT_TENANT,
    timeout_s: float = CONNECT_TIMEOUT_S,
    agent: str = "",
    follow: str | Path = "",
) -> "Client":
    """Connect as `connect` does, for threads."""
    return Client(connect(where, tenant=tenant, timeout_s=timeout_s, agent=agent, follow=follow))


class Client:
    """Invokes the services of one cell from any thread; made by `connect_blocking`.

    A thread of its own runs the event loop. To be closed, or used in a `with` statement.
    """

    def __init__(self, connecting: AbstractAsyncContextManager[AsyncClient]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="tona-client", daemon=True)
        self._thread.start()
        self._connecting = connecting
        try:
            self._client = self._call(connecting.__aenter__())
        except BaseException:
            self._stop()
            raise

    def invoke(
        self,
        service: str,
        inputs: Mapping[str, Any],
        *,
        deadline_s: float = DEADLINE_S,
        priority: int = PRIORITY_DEFAULT,
    ) -> Result:
        """Run a service once and return its answer; see `AsyncClient.invoke`."""
        call = self._client.invoke(service, inputs, deadline_s=deadline_s, priority=priority)
        return self._call(call)

    def stream(
        self,
        service: str,
        inputs: Iterable[Mapping[str, Any]],
        *,
        in_flight: int = IN_FLIGHT,
        ordered: bool = True,
        deadline_s: float = DEADLINE_S,
    ) -> Iterator[Result | InvocationError]:
        """Run a service for each input, `in_flight` at a time; see `AsyncClient.stream`."""
        running: deque[tuple[int, Future[Result]]] = deque()
        try:
            for index, item in enumerate(inputs):
                call = self._client.invoke(service, item, deadline_s=deadline_s)
                running.append((index, self._begin(call)))
                if len(running) >= max(1, in_flight):
                    yield _next(running, ordered)
            while running:
                yield _next(running, ordered)
        finally:
            for _, future in running:
                future.cancel()

    def publish(
        self, service: str, inputs: Mapping[str, Any], *, deadline_s: float = DEADLINE_S
    ) -> str:
        """Publish values on the inputs of a service; see `AsyncClient.publish`."""
        return self._call(self._client.publish(service, inputs, deadline_s=deadline_s))

    def submit(
        self,
        service: str,
        inputs: Mapping[str, Any],
        *,
        job: str = "",
        deadline_s: float = 0.0,
        run_s: float = RUN_S,
        priority: int = PRIORITY_DEFAULT,
        accept_s: float = ACCEPT_S,
    ) -> "BlockingJob":
        """Submit a job, a durable invocation; see `AsyncClient.submit`."""
        call = self._client.submit(
            service,
            inputs,
            job=job,
            deadline_s=deadline_s,
            run_s=run_s,
            priority=priority,
            accept_s=accept_s,
        )
        return BlockingJob(self._call(call), self._call)

    def job(self, service: str, job: str) -> "BlockingJob":
        """Return the handle of a job that was submitted before; see `AsyncClient.job`."""
        return BlockingJob(self._client.job(service, job), self._call)

    def close(self) -> None:
        """End every open request with ClientClosed, and the connection; idempotent."""
        if self._loop.is_closed():
            return
        try:
            self._call(self._connecting.__aexit__(None, None, None))
        finally:
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _begin(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        if self._loop.is_closed():
            work.close()
            raise ClientClosed("the client is closed: connect anew")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        future = self._begin(work)
        try:
            return future.result()
        except BaseException:
            # As when Ctrl-C ends the wait: nobody is left to take the answer.
            future.cancel()
            raise

    def _stop(self) -> None:
        self._call(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class BlockingJob:
    """A durable invocation; see `tona.job_client.Job`."""

    def __init__(self, job: Job, call: Callable[[Coroutine[Any, Any, Any]], Any]) -> None:
        self.id = job.id
        self.service = job.service
        self._job = job
        self._call = call

    def result(self, timeout_s: float | None = None) -> Result:
        """Wait for the end and return the outputs."""
        return cast("Result", self._call(self._job.result(timeout_s)))

    def status(self) -> JobStatus | JobEnded:
        """Ask where it stands, or how it has ended."""
        return cast("JobStatus | JobEnded", self._call(self._job.status()))

    def cancel(self) -> JobStatus | JobEnded:
        """End it, if it is not over."""
        return cast("JobStatus | JobEnded", self._call(self._job.cancel()))


def _next(running: deque[tuple[int, Future[Result]]], ordered: bool) -> Result | InvocationError:
    if not ordered:
        done, _ = wait([future for _, future in running], return_when=FIRST_COMPLETED)
        while running[0][1] not in done:
            running.rotate(-1)
    index, future = running.popleft()
    try:
        return msgspec.structs.replace(future.result(), index=index)
    except InvocationError as error:
        return error
