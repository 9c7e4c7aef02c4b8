from ..schemas import errors as _errors  # noqa: F401  (a bare `import actors` fails loudly)
