"""Mosquitto's configuration and access list, made from the table of topics. Pure."""

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

from controller.trust.authority import Standing
from protocols import topics
from protocols.topics import Speaker

PACKET_MAX_BYTES: Final = 512 * 1024
"""Above the largest message of the table with its properties; announced to clients of MQTT 5."""
INFLIGHT_MAX: Final = 1000
QUEUED_MAX: Final = 100_000
QUEUED_MAX_BYTES: Final = 64 * 1024 * 1024
"""Per client, as the two above: one that reads slowly cannot take the machine's memory."""


class Files(NamedTuple):
    """Where the broker finds what it reads."""

    config: Path
    acl: Path
    ca: Path
    crl: Path
    certificate: Path
    key: Path

    @classmethod
    def under(cls, folder: Path) -> "Files":
        """Return the files in `folder`."""
        return cls(
            config=folder / "mosquitto.conf",
            acl=folder / "acl",
            ca=folder / "ca.pem",
            crl=folder / "crl.pem",
            certificate=folder / "certificate.pem",
            key=folder / "key.pem",
        )


class Change(StrEnum):
    """What a new standing of the authority asks of a running broker."""

    NOTHING = "nothing"
    RELOAD = "reload"
    RESTART = "restart"


def change(old: Standing, new: Standing) -> Change:
    """Return what takes a broker from `old` to `new`.

    The access list is read again at a signal, which no session notices. Revocations and authorities
    are not, and a session that is open would outlive its certificate: those take a restart.
    """
    if (new.ca_pem, new.crl_pem, new.revoked) != (old.ca_pem, old.crl_pem, old.revoked):
        return Change.RESTART
    if new.identities != old.identities:
        return Change.RELOAD
    return Change.NOTHING


def render(host: str, port: int, files: Files, *, tls: bool, user: str) -> str:
    """Return the configuration of a broker with one listener on `host`:`port`.

    Without `tls` everyone who reaches the listener may do everything: for loopback alone. `user` is
    whom it stays when started by root; it could not read its files again as another.
    """
    lines = [
        f"user {user}",
        f"listener {port} {host}",
        f"allow_anonymous {_word(not tls)}",
        "set_tcp_nodelay true",
        "persistence false",
        f"max_inflight_messages {INFLIGHT_MAX}",
        f"max_queued_messages {QUEUED_MAX}",
        f"max_queued_bytes {QUEUED_MAX_BYTES}",
        f"max_packet_size {PACKET_MAX_BYTES}",
        "sys_interval 0",
        "connection_messages false",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
    ]
    if tls:
        lines += [
            f"cafile {files.ca}",
            f"crlfile {files.crl}",
            f"certfile {files.certificate}",
            f"keyfile {files.key}",
            f"acl_file {files.acl}",
            "tls_version tlsv1.2",
            "require_certificate true",
            "use_identity_as_username true",
        ]
    return "\n".join(lines) + "\n"


def render_acl(identities: Iterable[tuple[str, Speaker]]) -> str:
    """Return a section for each identity, with its own name where the table says `%u`.

    Mosquitto's `pattern` lines would hold for every user, of whatever kind; so none is used, and
    who has no section may do nothing.
    """
    lines: list[str] = []
    for name, speaker in identities:
        lines.append(f"user {name}")
        lines += (
            f"topic {line.access} {line.pattern.replace('%u', name)}"
            for line in topics.acl(speaker)
        )
    return "\n".join(lines) + "\n"


def _word(value: bool) -> str:
    return "true" if value else "false"
