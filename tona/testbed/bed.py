"""A testbed that stands: its ground, its controllers and nodes, and what is known of it on disk."""

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
from msgspec import Struct

from device_agent.artifacts.blobs import sweep
from protocols.errors import EnvironmentFailure, UserError
from protocols.folder import DataFolder
from tona.local import deployed
from tona.local.deployed import Deployed, Seen
from tona.local.place import Place
from tona.local.supervisor import Told
from tona.testbed.lane import Conditions
from tona.testbed.plan import Spec
from tona.testbed.radio import ATTACHMENT, SIGNALS, SWITCH

if TYPE_CHECKING:
    from tona.testbed.identities import Identities

WHO: Final = "`tona testbed`"
STATE: Final = "testbed.json"
LOCK: Final = "lock"
CONFIG: Final = "controllers.toml"
NODE_CONFIG: Final = "nodes.toml"
SENSOR: Final = "noise"
SENSOR_BYTES: Final = 8
"""Of the sensor that every node has: as random as its machine."""
_SENSORS: Final = f'[sensors.{SENSOR}]\npath = "/dev/urandom"\nshape = [{SENSOR_BYTES}]\n'
RADIO: Final = "radio"
DOWN_WITHIN_S: Final = 40.0
"""For an owner that is told to end; longer than its processes are given."""
_LOOK_S: Final = 0.1
_GONE_WITHIN_S: Final = 5.0


class Ground(Protocol):
    """What a testbed stands on; `NetworkGround` or `LoopbackGround`."""

    spec: Spec

    @property
    def mode(self) -> str:
        """Return `netns` or `loopback`."""

    @property
    def broker(self) -> str:
        """Return which broker each gateway has."""

    @property
    def operator(self) -> str:
        """Return the file of the bundle of whoever looks at it; empty: needs none."""

    @property
    def identities(self) -> "Identities | None":
        """Return who has certificates; None: nobody needs one."""

    @property
    def paths(self) -> Mapping[str, str]:
        """Return the paths of network namespaces by name; none on loopback."""

    def bundle(self, name: str) -> str:
        """Return the file of somebody's bundle; empty: needs none."""

    def broker_at(self, cell: str) -> tuple[str, int]:
        """Return where nodes and clients find a cell's broker."""

    def places(self) -> Mapping[str, Place]:
        """Return where each process stands."""

    async def start(self) -> None:
        """Have links, all of them down."""

    def become(self, node: str, cell: str, conditions: Conditions) -> None:
        """Change a link."""

    def arrive(self, node: str, cell: str, conditions: Conditions, after_ms: float) -> None:
        """Bring a radio that keeps its address to a cell after so long: timed where the air is.

        For others it does nothing: they arrive when their link comes up.
        """

    def prefer(self, node: str, cell: str) -> None:
        """Have a node reach whatever is beyond its cells over this one."""

    async def failed(self) -> EnvironmentFailure:
        """Wait until it is beyond mending."""

    async def stop(self) -> None:
        """Take it all away."""


class Standing(Struct, frozen=True, kw_only=True):
    """What is known of a testbed by its folder; the line that `tona testbed up --json` prints."""

    pid: int
    """Of the process that holds it; everything of it ends with that."""
    mode: str
    spec: Spec
    folder: str
    spaces: dict[str, str] = {}
    """Paths of the network namespaces, while it lives."""
    bundle: str = ""
    """Of its operator; empty on loopback."""
    started_unix_ms: int = 0
    seen: Seen | None = None
    """None until every process has started."""
    measured: bool = False
    """Whether a `run` holds it, whose figures end with it."""


class Bed:
    """One testbed, from `start` to `stop`; `make` builds its ground once the folder is ours."""

    def __init__(self, ground: Ground, folder: Path, told: Told, *, measured: bool = False) -> None:
        self.ground = ground
        self.spec = ground.spec
        self.folder = folder
        spec = self.spec
        plan = deployed.Plan(
            folder=folder / "run",
            deployment=spec.deployment,
            nodes=spec.nodes,
            broker=ground.broker,
            places=ground.places(),
            standing=spec.edge_nodes,
            node_options={node: self._options(node) for node in spec.node_names},
            config=str(folder / CONFIG),
        )
        self.processes = Deployed(plan, told)
        self._standing = Standing(
            pid=os.getpid(),
            mode=ground.mode,
            spec=spec,
            folder=str(folder),
            spaces=dict(ground.paths),
            bundle=ground.operator,
            started_unix_ms=time.time_ns() // 1_000_000,
            measured=measured,
        )

    def radio(self, node: str) -> Path:
        """Return the folder of what a node's device agent meets of its radio."""
        return self.folder / RADIO / node

    def _options(self, node: str) -> tuple[str, ...]:
        spec, radio = self.spec, self.radio(node)
        said = [f"--config={self.folder / NODE_CONFIG}"]
        said += [f"--radio=file:{radio / SIGNALS}", f"--attachment={radio / ATTACHMENT}"]
        if spec.radios(node) == 1:
            said.append(f"--switch={radio / SWITCH}")
        if spec.keeps(node):
            said.append("--address=keep")
        if not spec.make_before_break or (spec.radios(node) == 1 and not spec.keeps(node)):
            said.append("--radios=1")
        return tuple(said)

    async def start(self, begin: Callable[[], None]) -> Standing:
        """Start everything; `begin` puts the links up once there are any.

        Raises UserError, EnvironmentFailure.
        """
        note(self.folder, self._standing)
        (self.folder / CONFIG).write_text(self.spec.config, encoding="utf-8")
        (self.folder / NODE_CONFIG).write_text(_SENSORS, encoding="utf-8")
        for node in self.spec.node_names:
            self.radio(node).mkdir(mode=0o700, parents=True, exist_ok=True)
        await self.ground.start()
        begin()
        seen = await self.processes.start()
        self._standing = msgspec.structs.replace(self._standing, seen=seen)
        note(self.folder, self._standing)
        return self._standing

    async def failed(self) -> EnvironmentFailure:
        """Wait until a part is beyond mending, and return why; may never return."""
        parts = [
            asyncio.ensure_future(one) for one in (self.processes.failed(), self.ground.failed())
        ]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for one in parts:
                one.cancel()

    async def stop(self) -> None:
        """End everything; safe after a failed start."""
        await self.processes.stop()
        await self.ground.stop()


async def unless_failed(
    work: Coroutine[None, None, None], *parts: Coroutine[None, None, EnvironmentFailure]
) -> None:
    """Do something until it is done, or a part is beyond mending: then raise why."""
    doing = asyncio.ensure_future(work)
    failing = [asyncio.ensure_future(one) for one in parts]
    try:
        await asyncio.wait({doing, *failing}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise next(one.result() for one in failing if one.done())
        doing.result()
    finally:
        for one in (doing, *failing):
            one.cancel()
        await asyncio.gather(doing, *failing, return_exceptions=True)


def hold(folder: Path) -> DataFolder:
    """Take a folder for a new testbed, and clear what a dead one has left.

    Raises UserError where one lives there.
    """
    lock = DataFolder(folder, WHO)
    clear(folder)
    return lock


def clear(folder: Path) -> None:
    """Remove everything that a testbed has left in its folder; large values in memory too."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.name == LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    sweep()


def note(folder: Path, standing: Standing) -> None:
    """Write down what stands. Raises EnvironmentFailure."""
    draft = folder / f"{STATE}.new"
    try:
        draft.write_bytes(msgspec.json.encode(standing))
        draft.replace(folder / STATE)
    except OSError as error:
        raise EnvironmentFailure(f"{folder}: cannot be written: {error.strerror}") from None


def read(folder: Path) -> Standing | None:
    """Return what was written down last; None: nothing that can be read."""
    try:
        return msgspec.json.decode((folder / STATE).read_bytes(), type=Standing)
    except (OSError, msgspec.DecodeError):
        return None


def lives(folder: Path) -> bool:
    """Whether somebody holds a testbed in a folder."""
    try:
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def standing(folder: Path) -> Standing:
    """Return the testbed that stands in a folder. Raises UserError where none does."""
    found = read(folder) if lives(folder) else None
    if found is None:
        raise UserError(f"no testbed stands in {folder}: build one with `tona testbed up`")
    return found


def take_down(folder: Path, *, force: bool = False) -> str:
    """End a testbed and clear its folder; say what was there.

    Raises EnvironmentFailure where a `run` measures it, unless `force`, or its owner does not end.
    """
    found = read(folder)
    if not lives(folder):
        clear(folder)
        return "dead" if found is not None else "nothing"
    if found is None:
        raise EnvironmentFailure(f"{folder}: a testbed is just beginning there; try again")
    if found.measured and not force:
        raise EnvironmentFailure(
            f"`tona testbed run` (process {found.pid}) measures the testbed in {folder}: "
            "to end it all the same, say --force"
        )
    _tell(found.pid, signal.SIGTERM)
    if not _ended(folder, DOWN_WITHIN_S):
        # What it held ends with it: the kernel sees to that.
        _tell(found.pid, signal.SIGKILL)
        if not _ended(folder, _GONE_WITHIN_S):
            raise EnvironmentFailure(f"process {found.pid}, which holds {folder}, does not end")
    clear(folder)
    return "alive"


def _tell(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _ended(folder: Path, within_s: float) -> bool:
    end_s = time.monotonic() + within_s
    while lives(folder):
        if time.monotonic() >= end_s:
            return False
        time.sleep(_LOOK_S)
    return True
