"""A sandbox for code that is not trusted: Python under bubblewrap, held in time, memory, processes, disk and output."""

from .outcome import How, Limits, Outcome
from .probing import require_sandbox
from .running import DEFAULT, run_python

__all__ = ["DEFAULT", "How", "Limits", "Outcome", "require_sandbox", "run_python"]
