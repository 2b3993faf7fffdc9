"""The callers of a run: a process for each node that moves, what it is told and what it says."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from controller.child import module_command
from protocols.errors import EnvironmentFailure
from tona.local.supervisor import Supervisor, Told
from tona.testbed.bed import Bed
from tona.testbed.caller import RECORD
from tona.testbed.caller import Ask as Asked
from tona.testbed.choices import Ask
from tona.testbed.figures import Called, Sums
from tona.testbed.identities import client_of
from tona.testbed.radio import ATTACHMENT
from tona.testbed.services import service_of

DEADLINE_S: Final = 30.0
"""A request that has no answer by then is lost."""
CLOSE_S: Final = 10.0
"""For a caller's connections and files, after its last answer."""


class Callers:
    """Starts, tells and ends them."""

    def __init__(self, bed: Bed, ask: Ask, per_s: float, told: Told) -> None:
        self._bed = bed
        self._ground = bed.ground
        self._beside = ask is Ask.EDGE
        self._per_s = per_s
        self._folder = bed.folder / "callers"
        self._supervisor = Supervisor(bed.processes.logs, told)
        self._begun: list[str] = []

    async def start(self, homes: Mapping[str, str]) -> None:
        """Start them all, and wait until each is connected; `homes` are the cells of services.

        Raises EnvironmentFailure.
        """
        self._folder.mkdir()
        await asyncio.gather(*(self._start(node, homes) for node in self._bed.spec.node_names))

    async def _start(self, node: str, homes: Mapping[str, str]) -> None:
        ground, cell = self._ground, homes[service_of(node)]
        (host, port), bundle = ground.broker_at(cell), ground.bundle(client_of(node))
        asked = Asked(
            service=service_of(node),
            # Without certificates it is the name that tells over whose link a client comes.
            identity=client_of(node) if self._beside or bundle else f"edge-{client_of(node)}",
            cell=cell,
            host=host,
            port=port,
            records=str(self._file(node, "records")),
            sums=str(self._file(node, "sums")),
            per_s=self._per_s,
            deadline_s=DEADLINE_S,
            bundle=bundle,
            follow=str(self._bed.radio(node) / ATTACHMENT) if self._beside else "",
        )
        file = self._file(node, "json")
        file.write_bytes(msgspec.json.encode(asked))
        command = module_command("tona.testbed.caller", str(file))
        space = ground.paths.get(node if self._beside else cell, "")
        self._begun.append(node)
        name = client_of(node)
        await self._supervisor.start(name, lambda: command, announces=True, space=space)

    async def failed(self) -> EnvironmentFailure:
        """Wait until one is beyond mending, and return why; may never return."""
        return await self._supervisor.failed()

    async def stop(self) -> None:
        """End them: each waits for what it has under way."""
        names = [client_of(node) for node in self._begun]
        await self._supervisor.stop(*names, within_s=DEADLINE_S + CLOSE_S)

    def called(self, node: str) -> Called:
        """Return what a caller that has ended has to say. Raises EnvironmentFailure."""
        try:
            sums = msgspec.json.decode(self._file(node, "sums").read_bytes(), type=Sums)
            data = self._file(node, "records").read_bytes()
        except (OSError, msgspec.DecodeError) as error:
            log = self._bed.processes.logs / f"{client_of(node)}.log"
            raise EnvironmentFailure(
                f"{client_of(node)} left no account: {error} (log: {log})"
            ) from None
        whole = len(data) - len(data) % RECORD.size
        records = [one for one in RECORD.iter_unpack(data[:whole]) if one[3] == 0]
        return Called(
            sums,
            sorted(done for _, _, done, _ in records),
            [(done - sent) / 1e6 for _, sent, done, _ in records],
        )

    def _file(self, node: str, kind: str) -> Path:
        return self._folder / f"{node}.{kind}"
