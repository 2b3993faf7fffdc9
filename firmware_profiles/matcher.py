"""Which board this is: facts read from the machine, then a pure choice among the profiles."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from msgspec import Struct

from firmware_profiles.profile import Match, Pci, Profile

MAX_PCI_DEVICES: Final = 1024
MAX_FACT_BYTES: Final = 4096
GENERIC: Final = "generic-"
DMI_FIELDS: Final = ("sys_vendor", "product_name", "product_family", "board_vendor", "board_name")
X86: Final = ("x86_64", "amd64", "i686")


class Facts(Struct, frozen=True):
    """What a machine says of itself; empty where it does not."""

    arch: str
    compatible: tuple[str, ...] = ()
    model: str = ""
    dmi: dict[str, str] = {}
    pci: tuple[Pci, ...] = ()


class Detection(Struct, frozen=True):
    """The profile of this machine, why it is that one, and what a person should know."""

    profile: Profile
    why: str
    warnings: tuple[str, ...] = ()


class _Fit(Struct, frozen=True, order=True):
    """How well a profile fits; the greatest wins."""

    specificity: int
    rank: int
    place: int
    """Minus the place of the string that fitted in the profile's list: the first is the closest."""
    why: str


def choose(facts: Facts, profiles: tuple[Profile, ...]) -> Detection:
    """Choose the profile that fits these facts most specifically; one generic has to be there."""
    fits = [(fit, one) for one in profiles if (fit := _fit(one.match, facts)) is not None]
    fits.sort(key=lambda pair: pair[0], reverse=True)
    warnings: list[str] = []
    if not fits:
        wanted = f"{GENERIC}{'x86-64' if facts.arch in X86 else 'aarch64'}"
        profile = next(one for one in profiles if one.name == wanted)
        return Detection(
            profile,
            f"no profile knows the architecture {facts.arch}",
            (f"This machine ({facts.arch}) is unknown: {wanted} stands in for it.",),
        )
    fit, profile = fits[0]
    others = [other.name for rival, other in fits[1:] if rival.specificity == fit.specificity]
    if others and not profile.name.startswith(GENERIC):
        warnings.append(
            f"{' and '.join(others)} fits this machine as well; {profile.name} was taken. "
            "Name the profile in the configuration to choose the other."
        )
    if profile.name.startswith(GENERIC):
        board = facts.model or " ".join(
            facts.dmi[name] for name in ("sys_vendor", "product_name") if name in facts.dmi
        )
        warnings.append(
            f"No profile knows this board ({board or 'it does not name itself'}): "
            f"{profile.name} reads what is common to its architecture."
        )
    return Detection(profile, fit.why, tuple(warnings))


def read_facts(root: Path, machine: str) -> Facts:
    """Read device tree, DMI and PCI under `root`; what is not there stays empty."""
    tree = next(
        (
            folder
            for folder in (root / "proc/device-tree", root / "sys/firmware/devicetree/base")
            if folder.is_dir()
        ),
        None,
    )
    dmi = {name: _text(root / "sys/class/dmi/id" / name) for name in DMI_FIELDS}
    return Facts(
        arch=machine,
        compatible=tuple(_text(tree / "compatible").split("\0")) if tree else (),
        model=_text(tree / "model") if tree else "",
        dmi={name: value for name, value in dmi.items() if value},
        pci=_pci(root / "sys/bus/pci/devices"),
    )


def _fit(match: Match, facts: Facts) -> _Fit | None:
    if facts.arch not in match.arch:
        return None
    recognisers = (_by_compatible, _by_model, _by_dmi, _by_pci)
    for specificity, recognise in zip((4, 3, 2, 1), recognisers, strict=True):
        for place, why in recognise(match, facts):
            return _Fit(specificity, match.rank, -place, why)
    named = match.compatible or match.model or match.dmi or match.pci
    return None if named else _Fit(0, match.rank, 0, f"the architecture is {facts.arch}")


def _by_compatible(match: Match, facts: Facts) -> Iterator[tuple[int, str]]:
    for place, name in enumerate(match.compatible):
        if name in facts.compatible:
            yield place, f"the device tree is compatible with {name}"


def _by_model(match: Match, facts: Facts) -> Iterator[tuple[int, str]]:
    for place, pattern in enumerate(match.model):
        if facts.model and fnmatchcase(facts.model, pattern):
            yield place, f"the device tree's model is {facts.model}"


def _by_dmi(match: Match, facts: Facts) -> Iterator[tuple[int, str]]:
    for place, fields in enumerate(match.dmi):
        pairs = [(facts.dmi.get(name, ""), pattern) for name, pattern in fields.items()]
        if pairs and all(value and fnmatchcase(value, pattern) for value, pattern in pairs):
            said = ", ".join(f"{name} {facts.dmi[name]}" for name in fields)
            yield place, f"DMI says {said}"


def _by_pci(match: Match, facts: Facts) -> Iterator[tuple[int, str]]:
    for place, wanted in enumerate(match.pci):
        for device in facts.pci:
            if _same_device(wanted, device):
                yield place, f"the PCI bus has {device.vendor:04x}:{device.device or 0:04x}"


def _same_device(wanted: Pci, device: Pci) -> bool:
    return (
        wanted.vendor == device.vendor
        and wanted.device in (None, device.device)
        and wanted.kind in (None, device.kind)
    )


def _pci(folder: Path) -> tuple[Pci, ...]:
    try:
        slots = sorted(folder.iterdir())[:MAX_PCI_DEVICES]
    except OSError:
        return ()
    found = []
    for slot in slots:
        try:
            vendor, device, kind = (
                int(_text(slot / name), 16) for name in ("vendor", "device", "class")
            )
        except ValueError:
            continue
        found.append(Pci(vendor, device, kind >> 8))
    return tuple(found)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FACT_BYTES).decode("utf-8", "replace").strip("\0 \n")
    except OSError:
        return ""
