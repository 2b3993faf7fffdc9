"""What a controller is told: file, environment `TONA_*`, flags; the later wins."""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from controller.broker.address import Address
from controller.broker.spec import EMBEDDED, parse_url
from controller.decider import Role
from controller.mobility.settings import MobilitySettings
from protocols.base import Name
from protocols.errors import UserError
from protocols.submission import near
from protocols.topics import valid_name

DEFAULT_API_PORT: Final = 8600
MQTT_PORT: Final = 1883
MQTTS_PORT: Final = 8883
PREFIX: Final = "TONA_"

Port = Annotated[int, Meta(ge=0, le=65535)]
Pace = Annotated[int, Meta(ge=50, le=3_600_000)]
Side = Literal["core", "radio"]
LISTS: Final = ("roles", "anchors", "schedulers", "cells", "direct", "stores", "neighbours")
"""Options that are several words, with commas between where they are one text."""
_CHOICES: Final = {"roles": tuple(Role), "side": get_args(Side)}
_WORD: Final = re.compile(r"\W")


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything about one controller; a port of 0 means any free one."""

    cell: Name = "cell"
    name: Name = "controller"
    """Its identity on the broker; with a bundle, the bundle's."""
    data: str = ""
    """Folder of store, artifacts and large values; empty: below the user's state folder."""
    api_host: str = "127.0.0.1"
    api_port: Port = DEFAULT_API_PORT
    advertise: str = ""
    """Host name or address under which nodes and clients reach the API; empty: `api_host`."""
    broker: str = EMBEDDED
    """`embedded`, `mosquitto`, or `mqtt[s]://HOST:PORT` of one that runs already."""
    broker_host: str = "127.0.0.1"
    broker_port: Port | None = None
    """None: the standard one, 8883 with an authority and 1883 without."""
    authority: str = ""
    """Folder made by `tona ca init`; needed as soon as a listener leaves loopback."""
    bundle: str = ""
    """File made by `tona ca issue --kind controller` for this controller."""
    heartbeat_ms: Pace = 1000
    sample_ms: Pace = 1000
    roles: Annotated[tuple[Role, ...], Meta(min_length=1, max_length=3)] = (
        Role.NAMO,
        Role.TA,
        Role.TS,
    )
    """Which this process runs; the others are elsewhere, reached over the uplink."""
    namo: Name = "namo-main"
    """Name of the NAMO, here or elsewhere."""
    ta: Name = "ta-main"
    """Name of this process's TA; without one, of the TA that its roles speak to."""
    ts: Name = "ts-main"
    """Name of this process's TS; without one, of the TS that its TA speaks to."""
    anchors: tuple[Name, ...] = ()
    """Of NAMO and TS: the TAs that they speak to; empty: `ta` alone."""
    schedulers: tuple[Name, ...] = ()
    """Of the TA: the TSs that it speaks to; empty: `ts` alone."""
    uplink: str = ""
    """`mqtt[s]://HOST:PORT/CELL` where the roles of several processes meet; empty: our own cell."""
    side: Side = "radio"
    """Where the TA stands in the network."""
    cells: tuple[Name, ...] = ()
    """Of the TA: those of its schedulers; empty: our own."""
    direct: tuple[str, ...] = ()
    """Of the TA: brokers (as `uplink`) of cells whose nodes it also hears and speaks to itself."""
    mobility: MobilitySettings = MobilitySettings()
    """How it is decided which cell serves a node; a table of the file, nowhere else."""
    neighbours: tuple[Name, ...] | None = None
    """Of the TS: the cells that its nodes may be handed over to, of those whose TS has the same TA;
    None: all of them.
    """
    stores: tuple[str, ...] = ()
    """More addresses (of other processes' APIs) where nodes find artifacts and large values."""

    def __post_init__(self) -> None:
        """Hold together what only makes sense so. Raises ValueError, told as the user's mistake."""
        if len(set(self.roles)) < len(self.roles):
            raise ValueError("a role is named twice in `roles`")
        if self.direct and Role.TA not in self.roles:
            raise ValueError("`direct` is for a process with the role ta")

    @property
    def secured(self) -> bool:
        """Whether every connection of this process has TLS with verified certificates."""
        ours = bool(self.bundle) and bool(self.authority or self.broker.startswith("mqtts://"))
        others = [one for one in (self.uplink, *self.direct) if one]
        return ours and all(one.startswith("mqtts://") for one in others)

    def listening_port(self) -> int:
        """Return the port that our own broker listens on."""
        if self.broker_port is not None:
            return self.broker_port
        return MQTTS_PORT if self.authority else MQTT_PORT

    def folder(self) -> Path:
        """Return the data folder."""
        if self.data:
            return Path(self.data).expanduser()
        state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
        return Path(state).expanduser() / "tona" / f"controller-{self.cell}"


def read(path: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]) -> Config:
    """Return the configuration; flags that are None were not given. Raises UserError."""
    merged: dict[str, Any] = dict(_from_file(path)) if path else {}
    for name in merged:
        if name not in Config.__struct_fields__:
            hint = near(name, Config.__struct_fields__)
            raise UserError(f"{path}: there is no setting {name!r}{hint}")
    sources = {name: f"{path}: {name}" for name in merged}
    for name in set(Config.__struct_fields__) - {"mobility"}:
        said = environment.get(PREFIX + name.upper(), "")
        if said:
            merged[name], sources[name] = said, PREFIX + name.upper()
    for name, value in flags.items():
        if value is not None:
            merged[name], sources[name] = value, f"--{name.replace('_', '-')}"
    for name in LISTS:
        if isinstance(merged.get(name), str):
            merged[name] = [one.strip() for one in merged[name].split(",") if one.strip()]
    try:
        return msgspec.convert(merged, Config, strict=False)
    except msgspec.ValidationError as error:
        raise UserError(_told(str(error), sources)) from None


def _told(fault: str, sources: Mapping[str, str]) -> str:
    """Return what is wrong with a configuration, and where that was said."""
    what, _, path = fault.partition(" - at `$.")
    name = _WORD.split(path, maxsplit=1)[0]
    if "matching regex" in what:
        what = "expected a name: letters, digits, '.', '_' and '-', first a letter or digit"
    elif name in _CHOICES:
        what += f"; choose from {', '.join(_CHOICES[name])}"
    where = sources.get(name, "the controller's configuration")
    inner = path.removeprefix(name).removesuffix("`")
    return f"{where}{inner}: {what[:1].lower()}{what[1:]}"


def meeting_point(url: str) -> tuple[Address, str]:
    """Return the broker and the cell in `mqtt[s]://HOST:PORT/CELL`. Raises UserError."""
    broker, slash, cell = url.rpartition("/")
    if not slash or "://" not in broker or not valid_name(cell):
        raise UserError(f"{url!r} names no cell of a broker: write mqtt://HOST:PORT/CELL")
    return parse_url(broker), cell


def _from_file(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the configuration: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a TOML file: {error}") from None
