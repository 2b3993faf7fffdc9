"""What a client may ask of a service, checked in the same words wherever it is asked. Pure."""

import re
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Final

_JOB_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_job_id(job: str) -> None:
    """Check an identifier of the caller's choice. Raises ValueError."""
    if _JOB_ID.fullmatch(job) is None:
        raise ValueError(
            f"{job[:80]!r} cannot name a job: write letters, digits, '.', '_' and '-', up to 128, "
            "a letter or digit first"
        )


def misfit(service: str, known: Collection[str], given: Collection[str]) -> str:
    """Say what is wrong with the names of a service's inputs; empty where nothing is."""
    strange = sorted(set(given) - set(known))
    missing = sorted(set(known) - set(given))
    if strange:
        what = f"has no input {strange[0]!r}{near(strange[0], known)}"
    elif missing:
        what = f"needs the input {missing[0]!r}"
    else:
        return ""
    return f"service {service!r} {what} (it takes {spoken(known)})"


def near(name: str, known: Iterable[str]) -> str:
    """Return a suggestion to append to a sentence about an unknown name; empty without one."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def spoken(names: Iterable[str]) -> str:
    """Return names as a person would list them."""
    return ", ".join(repr(name) for name in sorted(names)) or "nothing"
