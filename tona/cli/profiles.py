"""`tona profile`: what each board is, and which one this is."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from typer import Argument, Option

from firmware_profiles import Profile, detect, load, names, validate
from protocols.errors import UserError
from protocols.submission import near
from tona.cli import errors
from tona.cli.context import AsJson, details, show, show_json, table

app = typer.Typer(help="Board profiles.", no_args_is_help=True)


def _complete(incomplete: str) -> list[str]:
    return [one for one in names() if one.startswith(incomplete)]


@app.command("list")
def list_profiles(as_json: AsJson = False) -> None:
    """List the profiles that come with the package."""
    profiles = [load(name) for name in names()]
    if as_json:
        show_json(msgspec.json.encode(profiles))
        return
    made = table("PROFILE", "BOARD", "ARCHITECTURE", "ACCELERATORS")
    for one in profiles:
        accelerators = (f"{part.kind} {part.name}" for part in one.accelerators)
        made.add_row(one.name, one.title, ", ".join(one.match.arch), ", ".join(accelerators) or "-")
    show(made)


@app.command("show")
def show_profile(
    name: Annotated[str, Argument(help="Its name.", autocompletion=_complete)],
    as_json: AsJson = False,
) -> None:
    """Show what a profile says."""
    if name not in names():
        hint = near(name, names()) or f"; there are {', '.join(names())}"
        raise UserError(f"there is no profile {name!r}{hint}")
    profile = load(name)
    if as_json:
        show_json(msgspec.json.encode(profile))
    else:
        _draw(profile)


@app.command("detect")
def detect_profile(
    root: Annotated[Path, Option(help="Where /proc and /sys lie.")] = Path("/"),
    as_json: AsJson = False,
) -> None:
    """Say which profile this machine gets, and why."""
    found = detect(root)
    if as_json:
        said = {"profile": found.profile.name, "why": found.why, "warnings": found.warnings}
        show_json(msgspec.json.encode(said))
        return
    show(f"{found.profile.name}: {found.why}")
    for one in found.warnings:
        show(one)


@app.command("validate")
def validate_profile(
    files: Annotated[list[Path], Argument(help="Profiles of your own, TOML.")],
    as_json: AsJson = False,
) -> None:
    """Check profiles completely; every problem is told with its line."""
    problems = {str(path): validate(path) for path in files}
    if as_json:
        show_json(msgspec.json.encode(problems))
    else:
        for path, found in problems.items():
            for one in found:
                typer.echo(one, err=True)
            if not found:
                show(f"{path}: valid")
    if any(problems.values()):
        raise typer.Exit(errors.USAGE)


def _draw(one: Profile) -> None:
    limits = one.limits
    rows = [
        ("profile", one.name),
        ("board", one.title),
        ("architecture", ", ".join(one.match.arch)),
        ("device tree", ", ".join(one.match.compatible) or "-"),
        ("providers", ", ".join(one.providers)),
        ("interpreter", one.interpreter or "the agent's own"),
        ("memory of tasks", f"{limits.task_memory_share:.0%} of the machine's"),
        ("instances", f"at most {limits.max_instances}"),
        *(
            (name, ", ".join(source.path for source in getattr(one, name)) or "-")
            for name in ("temperature", "throttled", "power", "battery")
        ),
        *((part.kind, f"{part.name} ({', '.join(part.providers) or 'no provider'})")
          for part in one.accelerators),
        *(("note", note) for note in one.notes),
    ]  # fmt: skip
    show(details(rows))
