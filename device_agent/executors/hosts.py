"""Wasm hosts: forked from one warm zygote, each bound to a tenant at its first use.

Tenants never share a process. A host that nobody has used yet stands ready, so that a new tenant,
or one whose host died, need not wait for a process to start.
"""

import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from device_agent.executors.link import Link, Reply
from device_agent.executors.process import Process
from protocols.errors import EnvironmentFailure

HOST: Final = "host"
COMPILER: Final = "compiler"
BLANKS: Final = 1
"""Hosts that stand ready, beside those in use."""

OnEvent = Callable[[Reply], None]


class Host:
    """One host process; blank while it has no tenant."""

    def __init__(
        self,
        zygote: Process,
        number: int,
        birth: Mapping[str, Any],
        hung_up: "Callable[[Host], None]",
    ) -> None:
        """Have the zygote fork what `birth` says; `hung_up` hears when its socket ends.

        Raises EnvironmentFailure when the zygote does not listen.
        """
        self.number = number
        self.zygote = zygote
        self.pid = 0
        """0: not known yet."""
        self.tenant = ""
        self.unwanted = False
        """We ended it, so its end is no news."""
        self.lost: list[str] = []
        """Tasks that went with it."""
        ours, theirs = socket.socketpair()
        try:
            zygote.link.tell({"op": "fork", "child": number, **birth}, (theirs.fileno(),))
        except EnvironmentFailure:
            ours.close()
            raise
        finally:
            theirs.close()
        self.link = Link(ours, lambda: hung_up(self))

    def kill(self) -> None:
        """End it by force; nobody is told why it went."""
        self.unwanted = True
        if self.zygote.link.open:
            self.zygote.link.tell({"op": "kill", "child": self.number})
        self.link.close()


class Hosts:
    """The zygote and its hosts: one for each tenant, and the blank ones."""

    def __init__(
        self,
        start: Callable[[OnEvent], Process],
        folders: Mapping[str, Any],
        hung_up: Callable[[Host], None],
        gone: Callable[[Host, str], None],
        asked: Callable[[Host, Reply, memoryview], None],
    ) -> None:
        """`start` starts the zygote; `hung_up` and `gone` hear of a host's end, why at the second.

        `folders` are those that a host may `read` and `write`, and where it finds compiled `forms`
        and `blobs`; `asked` hears what guests ask for.
        `start` may raise ExecutorFailure.
        """
        self._start = start
        self._birth = {"what": HOST, **folders}
        self._told = hung_up
        self._told_why = gone
        self._asked = asked
        self._zygote: Process | None = None
        self._forks = 0
        self._blank: list[Host] = []
        self._by_tenant: dict[str, Host] = {}
        self._alive: dict[int, Host] = {}

    def ready(self) -> None:
        """Have a blank host. Raises EnvironmentFailure, or what `start` raises."""
        if len(self._blank) < BLANKS:
            self._blank.append(self._fork(self._birth))

    def of(self, tenant: str) -> Host:
        """Return the host of a tenant, bound now if need be. Raises as `ready` does."""
        host = self._by_tenant.get(tenant)
        if host is None:
            host = self._blank.pop() if self._blank else self._fork(self._birth)
            host.tenant = tenant
            self._by_tenant[tenant] = host
        return host

    def bound(self, tenant: str) -> Host | None:
        """Return the host that a tenant has."""
        return self._by_tenant.get(tenant)

    def release(self, tenant: str) -> None:
        """End the host of a tenant that has no instance any more."""
        host = self._by_tenant.get(tenant)
        if host is not None:
            host.kill()

    def lull(self) -> None:
        """Have hosts that run nothing give back the room that guests had."""
        for host in self._by_tenant.values():
            if not host.link.pending:
                host.link.tell({"op": "lull", "id": 0})

    def at(self, link: Link | None) -> Host | None:
        """Return the host in use behind a link."""
        return next((one for one in self._by_tenant.values() if one.link is link), None)

    def compiler(self, source: str, cache: str) -> Host:
        """Return a process that compiles one module and ends. Raises as `ready` does."""
        return self._fork({"what": COMPILER, "read": [source], "write": [cache]})

    def _fork(self, birth: Mapping[str, Any]) -> Host:
        if self._zygote is None:
            self._zygote = self._start(self._zygote_says)
        self._forks += 1
        host = Host(self._zygote, self._forks, birth, self._hung_up)
        host.link.on_ask = partial(self._asked, host)
        self._alive[host.number] = host
        return host

    def _hung_up(self, host: Host) -> None:
        if host in self._blank:
            self._blank.remove(host)
        if self._by_tenant.get(host.tenant) is host:
            del self._by_tenant[host.tenant]
        self._told(host)

    def _zygote_says(self, event: Reply) -> None:
        if event.born is not None:
            number, pid = event.born
            if number in self._alive:
                self._alive[number].pid = pid
        if event.exit is not None:
            number, reason = event.exit
            host = self._alive.pop(number, None)
            if host is not None:
                self._bury(host, reason)

    def _bury(self, host: Host, reason: str) -> None:
        # That it ended may be known before its last answer was read.
        host.link.finish()
        if not host.unwanted:
            self._told_why(host, reason)

    def forget(self, zygote: Process) -> None:
        """Take no more hosts from a zygote that has ended; `bury_all` does the rest."""
        if self._zygote is zygote:
            self._zygote = None

    async def bury_all(self, zygote: Process) -> None:
        """Wait for a zygote to end; the kernel ends its hosts with it."""
        await zygote.end()
        reason = f"went with the Wasm zygote, which {await zygote.exited()}"
        for number, host in list(self._alive.items()):
            if host.zygote is zygote:
                del self._alive[number]
                self._bury(host, reason)

    def end(self) -> None:
        """End every host, the blank ones too; the zygote stays."""
        for host in list(self._alive.values()):
            host.kill()

    def retire(self) -> None:
        """End the zygote, and with it every host."""
        for host in self._alive.values():
            host.unwanted = True
        if self._zygote is not None:
            self._zygote.link.close()

    @property
    def running(self) -> bool:
        """Whether there is a zygote."""
        return self._zygote is not None

    def pids(self) -> list[int]:
        """Return the processes of the zygote and of every host, the blank ones among them."""
        own = [self._zygote.pid] if self._zygote is not None else []
        return own + [one.pid for one in self._alive.values() if one.pid]
