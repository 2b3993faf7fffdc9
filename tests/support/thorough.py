"""How thorough the suite is."""

import os
from typing import Final

TIMES: Final = int(os.environ.get("EXAMPLES", "1"))
"""So many times as many examples of each property, and seeds of the simulator."""
