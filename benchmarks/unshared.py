"""``ayllu`` whose inference actors take all that comes, as queue groups spread it, and share nothing:
``python -m benchmarks.unshared ...``.
"""

from __future__ import annotations

import sys

from ayllu.actors import inference
from ayllu.bus.slots import Slots
from ayllu.runtime.cli import main


def endless(_: int, *, waiting: int) -> Slots:
    """Return slots for everything: what comes then waits in the engine."""
    return Slots(1000, waiting=waiting)


if __name__ == "__main__":
    inference.Slots = endless  # type: ignore[misc, assignment]
    sys.exit(main())
