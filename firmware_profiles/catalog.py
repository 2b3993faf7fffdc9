"""The profiles there are: those that come with the package, and a user's own files."""

import os
from pathlib import Path
from typing import Any, Final

import msgspec

from firmware_profiles.matcher import Detection, choose, read_facts
from firmware_profiles.profile import Profile
from protocols.errors import UserError

BOARDS: Final = Path(__file__).parent / "boards"
AUTO: Final = "auto"
SUFFIX: Final = ".toml"


def names() -> tuple[str, ...]:
    """Return the names of the profiles that come with the package, sorted."""
    return tuple(sorted(path.stem for path in BOARDS.glob(f"*{SUFFIX}")))


def load(name: str) -> Profile:
    """Return a profile of the package. Raises UserError when there is none of that name."""
    return msgspec.convert(document(name), Profile)


def all_profiles() -> tuple[Profile, ...]:
    """Return every profile of the package."""
    return tuple(load(name) for name in names())


def load_file(path: Path) -> Profile:
    """Return the profile in a user's file, which may name a `base` that it changes.

    Raises UserError with one line for each thing that is wrong.
    """
    from firmware_profiles import validation  # noqa: PLC0415 - only for a user's own file

    profile, problems = validation.check(path)
    if profile is None or problems:
        raise UserError("\n".join(problems))
    return profile


def validate(path: Path) -> list[str]:
    """Return every problem of a user's file as `FILE:LINE: FIELD: what is wrong`."""
    from firmware_profiles import validation  # noqa: PLC0415 - only for a user's own file

    return validation.check(path)[1]


def detect(root: Path = Path("/"), machine: str | None = None) -> Detection:
    """Recognise the machine under `root`; `machine` is uname's unless given.

    A machine that no profile names gets the generic profile of its architecture, and a warning.
    """
    return choose(read_facts(root, machine or os.uname().machine), all_profiles())


def select(wanted: str, root: Path = Path("/")) -> Detection:
    """Return the profile that a configuration asks for: `auto`, a name, or the path of a file.

    Raises UserError when there is no such profile or the file is wrong.
    """
    if wanted in ("", AUTO):
        return detect(root)
    if wanted.endswith(SUFFIX) or "/" in wanted:
        return Detection(load_file(Path(wanted)), f"the configuration names the file {wanted}")
    return Detection(load(wanted), f"the configuration names {wanted}")


def document(name: str) -> dict[str, Any]:
    """Return a profile of the package as TOML gives it. Raises UserError for an unknown name."""
    if name not in names():
        from protocols.submission import near  # noqa: PLC0415 - for this sentence alone

        hint = near(name, names()) or f"; there are {', '.join(names())}"
        raise UserError(f"there is no profile {name!r}{hint}")
    import tomllib  # noqa: PLC0415 - the daemon holds profiles, not their parser

    return tomllib.loads((BOARDS / f"{name}{SUFFIX}").read_text(encoding="utf-8"))
