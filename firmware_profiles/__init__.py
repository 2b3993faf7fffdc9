"""What each board is: data, and the small matcher that reads it."""

from firmware_profiles.catalog import detect, load, load_file, names, select, validate
from firmware_profiles.matcher import Detection
from firmware_profiles.profile import Accelerator, AcceleratorKind, Parse, Profile, Source

__all__ = [
    "Accelerator",
    "AcceleratorKind",
    "Detection",
    "Parse",
    "Profile",
    "Source",
    "detect",
    "load",
    "load_file",
    "names",
    "select",
    "validate",
]
