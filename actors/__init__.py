"""The domain: actors, their engines, and supervision."""

# This import makes a bare `import actors` fail loudly: there would be two copies of every class.
from ..schemas import errors as _errors  # noqa: F401
