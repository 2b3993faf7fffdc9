"""Why there is no connection, in one sentence a person can act on; pure."""

import os
import socket
import ssl
from typing import Final

from protocols.transport.settings import Settings

_FOREIGN: Final = (
    "the broker's certificate is not of our authority: it is another broker, or the bundle is of "
    "another authority"
)
_WRONG_NAME: Final = "the broker's certificate is not for {host}"
_CERTIFICATE: Final[dict[int, str]] = {
    7: _FOREIGN,
    # A board without a battery clock starts in 1970. Verification is not relaxed for it: the
    # session tries on, and the first attempt after the clock is set succeeds.
    9: "the broker's certificate is not valid yet, this machine's date is {today}: set the clock "
    "(NTP or timedatectl), the session goes on by itself",
    10: "the broker's certificate has expired, this machine's date is {today}",
    12: "the bundle's revocation list has expired, this machine's date is {today}: install a "
    "newer bundle",
    18: _FOREIGN,
    19: _FOREIGN,
    20: _FOREIGN,
    21: _FOREIGN,
    23: "the broker's certificate is revoked",
    62: _WRONG_NAME,
    64: _WRONG_NAME,
}
"""By OpenSSL's X509_V_ERR number."""


def explain(error: Exception, settings: Settings, today: str) -> str:
    """Say what failed at which broker and what to do; `today` is the machine's date."""
    match error:
        case ssl.SSLCertVerificationError():
            other = f"the broker's certificate is not valid ({error.verify_message})"
            what = _CERTIFICATE.get(error.verify_code, other)
            what = what.format(host=settings.host, today=today)
        case ssl.SSLError():
            what = _tls(error.reason or str(error))
        case ConnectionRefusedError():
            what = "refused, no broker listens there"
        case socket.gaierror():
            what = f"the name cannot be resolved ({error.strerror})"
        case TimeoutError():
            what = f"no answer within {settings.connect_timeout_ms} ms"
        case ConnectionError():
            what = f"the connection broke ({error})"
        case OSError(errno=int(number)):
            what = os.strerror(number).lower()
        case _:
            what = str(error)
    return f"{settings.host}:{settings.port}: {what}"


def _tls(reason: str) -> str:
    said = reason.lower().replace("_", " ")
    if "alert" in said:
        return (
            f"the broker refuses our certificate or our TLS ({said}): is the bundle the broker's?"
        )
    if "wrong version number" in said:
        return "the broker does not speak TLS on this port"
    return f"TLS failed ({said})"
