"""From what a user writes after `--broker` to a broker."""

from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from controller.broker.address import Address, is_loopback
from controller.broker.door import Broker
from protocols.errors import UserError

if TYPE_CHECKING:
    from controller.broker.mosquitto import ServerTrust

EMBEDDED: Final = "embedded"
MOSQUITTO: Final = "mosquitto"
_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}


def make_broker(
    spec: str,
    *,
    folder: Path,
    host: str = "127.0.0.1",
    port: int = 0,
    trust: "ServerTrust | None" = None,
) -> Broker:
    """Return the broker that `spec` asks for: embedded, mosquitto, mqtt://HOST[:PORT], mqtts://...

    The first two listen on `host`:`port` (0 picks a free one) and keep their files in `folder`;
    with `trust`, Mosquitto asks everyone for a certificate. Raises UserError.
    """
    # Clients of the controller take a spec apart without what its brokers need.
    from controller.broker.embedded import EmbeddedBroker  # noqa: PLC0415 - as above
    from controller.broker.external import ExternalBroker  # noqa: PLC0415 - as above
    from controller.broker.mosquitto import MosquittoBroker  # noqa: PLC0415 - as above

    if spec == MOSQUITTO:
        return MosquittoBroker(host, port, folder, trust)
    if spec == EMBEDDED:
        if trust is not None:
            raise UserError(
                "the embedded broker verifies no certificates: use --broker mosquitto, or start "
                "without an authority"
            )
        return EmbeddedBroker(host, port, folder)
    return ExternalBroker(parse_url(spec))


def check_spec(spec: str) -> None:
    """Raise UserError where `make_broker` would not know what is meant."""
    if spec not in {EMBEDDED, MOSQUITTO}:
        parse_url(spec)


def parse_url(spec: str) -> Address:
    """Return the address in `mqtt[s]://HOST[:PORT]`.

    Raises UserError: no such URL, or a plain one that leaves this machine.
    """
    try:
        url = urlsplit(spec)
        port = url.port
    except ValueError:
        raise _unknown(spec) from None
    rest = url.path.rstrip("/") or url.query or url.fragment or url.username or url.password
    if url.scheme not in _PORTS or not url.hostname or rest or port == 0:
        raise _unknown(spec)
    tls = url.scheme == "mqtts"
    if not tls and not is_loopback(url.hostname):
        raise UserError(
            f"{spec} would cross the network in the clear: use mqtts://{url.netloc} with a bundle "
            "from `tona ca issue`"
        )
    return Address(url.hostname, port or _PORTS[url.scheme], tls)


def _unknown(spec: str) -> UserError:
    return UserError(
        f"{spec!r} names no broker: write embedded, mosquitto, mqtt://HOST:PORT or "
        "mqtts://HOST:PORT, without user or path"
    )
