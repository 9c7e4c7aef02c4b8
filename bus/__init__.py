from ..schemas import errors as _errors  # noqa: F401  (a bare `import bus` fails loudly)
