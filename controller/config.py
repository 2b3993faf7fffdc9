"""What a controller is told: file, environment `TONA_*`, flags; the later wins."""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from controller.broker.spec import EMBEDDED
from protocols.base import Name
from protocols.errors import UserError

DEFAULT_API_PORT: Final = 8600
MQTT_PORT: Final = 1883
MQTTS_PORT: Final = 8883
PREFIX: Final = "TONA_"

Port = Annotated[int, Meta(ge=0, le=65535)]
Pace = Annotated[int, Meta(ge=50, le=3_600_000)]


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
    for name in Config.__struct_fields__:
        said = environment.get(PREFIX + name.upper(), "")
        if said:
            merged[name] = said
    merged.update({name: value for name, value in flags.items() if value is not None})
    try:
        return msgspec.convert(merged, Config, strict=False)
    except msgspec.ValidationError as error:
        raise UserError(f"the controller's configuration is not valid: {error}") from None


def _from_file(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the configuration: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a TOML file: {error}") from None
