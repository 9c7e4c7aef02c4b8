"""``ayllu`` with the merging of events switched off, to see what merging gives: ``python -m benchmarks.single_frames ...``."""

from __future__ import annotations

import sys

from ayllu.runtime import session
from ayllu.runtime.cli import main

if __name__ == "__main__":
    # No two events fit into so little: each has a frame of its own.
    session.MERGED_BYTES = 1  # type: ignore[misc]
    sys.exit(main())
