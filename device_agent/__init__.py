"""The daemon on every node: sensing, a pure core, executors."""

from typing import Final

VERSION: Final = "0.1.0"
"""What a birth tells; kept equal to the distribution's by a test."""
