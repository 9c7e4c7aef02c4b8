"""Edges and wiring: gateway, process tree, configuration, command line."""

# This import makes a bare `import runtime` fail loudly: there would be two copies of every class.
from ..schemas import errors as _errors  # noqa: F401
