"""An installed Mosquitto: configured, started, supervised, kept up with the authority."""

import asyncio
import logging
import os
import pwd
import shutil
import signal
import ssl
from pathlib import Path
from typing import Final, NamedTuple

from controller.broker import mosquitto_conf
from controller.broker.address import Address, is_loopback, reachable
from controller.broker.door import Broker
from controller.broker.lease import PortLease
from controller.broker.mosquitto_conf import Change, Files
from controller.broker.probe import session
from controller.broker.supervisor import Supervisor
from controller.child import READY_TIMEOUT_S, Child, tethered
from controller.trust.authority import Authority, Standing
from controller.trust.files import PRIVATE, write_atomic
from protocols.errors import EnvironmentFailure, TonaBug, UserError
from protocols.transport.tls import Bundle, client_context

TRUST_POLL_S: Final = 1.0
"""How soon a change by another process, such as `tona ca revoke`, is noticed."""
_CONNECT_POLL_S: Final = 0.01
_SEARCHED: Final = "/usr/local/sbin:/usr/sbin:/sbin:/opt/homebrew/sbin"

_log = logging.getLogger(__name__)


class ServerTrust(NamedTuple):
    """Whom the broker trusts, and what it shows: the bundle of this cell's controller."""

    authority: Authority
    identity: Bundle


class MosquittoBroker(Broker):
    """Serves MQTT 5: on loopback to everyone, with `trust` to who has a certificate in force.

    `folder` takes its files, a secret key among them. Raises UserError when `host` is not loopback
    and there is no `trust`, or Mosquitto is not installed.
    """

    def __init__(self, host: str, port: int, folder: Path, trust: ServerTrust | None) -> None:
        if trust is None and not is_loopback(host):
            raise UserError(
                f"a broker on {host} needs certificates: make an authority with `tona ca init`, "
                "or listen on 127.0.0.1"
            )
        self._binary = find()
        self._host = "127.0.0.1" if host == "localhost" else host
        self._wanted_port = port
        self._folder = folder
        self._files = Files.under(folder)
        self._trust = trust
        self._lease: PortLease | None = None
        self._standing: Standing | None = None
        self._seen: tuple[int, ...] = ()
        self._tls: ssl.SSLContext | None = None
        self._watcher: asyncio.Task[EnvironmentFailure] | None = None
        self._supervisor = Supervisor("mosquitto", self._launch, self._probe)

    @property
    def pid(self) -> int | None:
        """Process id of the broker; None while there is none."""
        return self._supervisor.pid

    async def start(self) -> Address:
        """Start Mosquitto and wait until it answers. Raises UserError, EnvironmentFailure."""
        self._lease = PortLease(self._host, self._wanted_port)
        started = False
        try:
            self._prepare(self._lease.port)
            await self._supervisor.start()
            started = True
        finally:
            if not started:
                self._lease.close()
        if self._trust is not None:
            self._watcher = asyncio.create_task(self._watch(), name="watch the authority")
        address = Address(reachable(self._host), self._lease.port, tls=self._trust is not None)
        _log.info("broker: %s on %s, process %s", self._binary, address.url, self.pid)
        return address

    async def stop(self) -> None:
        """End Mosquitto and give the port back."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            await asyncio.wait({watcher})
        await self._supervisor.stop()
        if self._lease is not None:
            self._lease.close()

    async def wait_failed(self) -> EnvironmentFailure:
        """Wait until restarts no longer help or our own certificate is revoked; return why."""
        waits = {asyncio.create_task(self._supervisor.wait_failed())}
        if self._watcher is not None:
            waits.add(asyncio.create_task(_shielded(self._watcher)))
        try:
            done, _ = await asyncio.wait(waits, return_when="FIRST_COMPLETED")
            return done.pop().result()
        finally:
            for one in waits:
                one.cancel()

    async def wait_up(self) -> int:
        """Wait until the broker runs and is ready, and return its process id."""
        return await self._supervisor.wait_up()

    async def refresh(self) -> Change:
        """Enforce the authority's present standing; return what that took.

        Happens by itself within TRUST_POLL_S of a change. Raises UserError for a damaged authority
        (what was enforced stays so), EnvironmentFailure when the broker does not come back or our
        own certificate was revoked.
        """
        if self._trust is None or self._standing is None:
            return Change.NOTHING
        authority, identity = self._trust
        self._seen = authority.version()
        if authority.has_revoked(identity):
            raise EnvironmentFailure(_own_revoked(identity))
        new = authority.standing()
        what = mosquitto_conf.change(self._standing, new)
        if what is not Change.NOTHING:
            self._enforce(new)
            _log.info("broker: the authority has changed; %s", what)
        if what is Change.RELOAD:
            self._supervisor.send(signal.SIGHUP)
        elif what is Change.RESTART:
            await self._supervisor.renew()
        return what

    @property
    def _port(self) -> int:
        return self._lease.port if self._lease is not None else self._wanted_port

    def _prepare(self, port: int) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the broker cannot make {self._folder}: {error.strerror}; "
                "name a folder that this user may write to"
            ) from None
        tls = self._trust is not None
        config = mosquitto_conf.render(self._host, port, self._files, tls=tls, user=_own_name())
        write_atomic(self._files.config, config.encode(), PRIVATE)
        if self._trust is not None:
            authority, identity = self._trust
            if authority.has_revoked(identity):
                raise UserError(_own_revoked(identity))
            self._tls = client_context(identity)
            write_atomic(self._files.certificate, identity.certificate_pem.encode(), PRIVATE)
            write_atomic(self._files.key, identity.key_pem.encode(), PRIVATE)
            self._seen = authority.version()
            self._enforce(authority.standing())

    def _enforce(self, standing: Standing) -> None:
        acl = mosquitto_conf.render_acl(standing.identities)
        write_atomic(self._files.acl, acl.encode(), PRIVATE)
        write_atomic(self._files.ca, standing.ca_pem.encode(), PRIVATE)
        write_atomic(self._files.crl, standing.crl_pem.encode(), PRIVATE)
        self._standing = standing

    async def _watch(self) -> EnvironmentFailure:
        told = ""
        while self._trust is not None:
            await asyncio.sleep(TRUST_POLL_S)
            try:
                if self._trust.authority.version() != self._seen:
                    await self.refresh()
                told = ""
            except UserError as error:
                if told != (told := str(error)):
                    _log.warning("broker: %s; what was enforced stays so", told)
            except EnvironmentFailure as failure:
                return failure
        raise TonaBug("a broker without trust has nothing to watch")

    async def _launch(self) -> Child:
        child = await Child.spawn(tethered([self._binary, "-c", str(self._files.config)]))
        ready = False
        try:
            await self._ready(child)
            ready = True
        finally:
            if not ready:
                await child.stop()
        return child

    async def _ready(self, child: Child) -> None:
        ended = asyncio.create_task(child.wait())
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while not ended.done():
                    try:
                        await self._probe()
                    except EnvironmentFailure:
                        await asyncio.wait({ended}, timeout=_CONNECT_POLL_S)
                    else:
                        return
        except TimeoutError:
            raise EnvironmentFailure(
                f"mosquitto was not ready in {READY_TIMEOUT_S:.0f} s: {child.last_words}"
            ) from None
        finally:
            ended.cancel()
        raise EnvironmentFailure(f"mosquitto ended at once: {child.last_words}")

    async def _probe(self) -> None:
        async with session(reachable(self._host), self._port, self._tls):
            pass


async def _shielded(task: asyncio.Task[EnvironmentFailure]) -> EnvironmentFailure:
    return await asyncio.shield(task)


def _own_revoked(identity: Bundle) -> str:
    return (
        f"the certificate of {identity.name}, which the broker shows, was revoked or replaced: "
        "start the controller with its new bundle"
    )


def find() -> str:
    """Return the path of the installed Mosquitto. Raises UserError with how to install it."""
    path = os.environ.get("PATH", os.defpath)
    found = shutil.which("mosquitto", path=f"{path}:{_SEARCHED}")
    if found is None:
        raise UserError(
            "mosquitto is not installed: run `sudo apt install mosquitto` (Debian, Ubuntu, "
            "Raspberry Pi OS) or `sudo dnf install mosquitto` (Fedora); on one machine alone, "
            "`--broker embedded` needs nothing"
        )
    return found


def _own_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # an id without a name is never root, and only root's broker reads this
        return str(os.geteuid())
