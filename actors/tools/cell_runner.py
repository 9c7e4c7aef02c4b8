"""What runs in the sandbox for ``code_interpreter``: the cells of a session, of which only the last one is heard.

It is a program of its own that needs nothing but the standard library, and is kept quick to start. On standard input comes
what is to be run, see `code_interpreter`; on standard output a mark tells where the last cell begins, and that it came to its
end. The cells share a namespace, a hash seed and a seed of ``random``, so that cells which are run again do the same again.

Whoever tampers with it deceives nobody but himself: it is believed no more than the code.
"""

# ruff: noqa: PTH108, PTH109, PTH113, PTH114, PTH118, PTH123 - pathlib is slow to import
# ruff: noqa: S102, S606 - the sandbox is where code may be run

from __future__ import annotations

import ast
import json
import os
import sys
import types
from contextlib import suppress

HASH_SEED = "PYTHONHASHSEED"
KEPT_PREFIX = ".kept-"
"""How the name of the file begins that says which files earlier cells left; the session's mark follows."""
MAX_KEPT = 256
"""Files of earlier cells that are told from those of the last one."""


class Cell:
    """A piece of code that runs in a namespace that others share; the value of its last expression is shown.

    Args:
        code: what is run.
        name: what tracebacks call it.
    """

    def __init__(self, code: str, name: str) -> None:
        self._code = code
        self._name = name

    def run(self, space: dict[str, object]) -> None:
        """Run it; whatever it raises is raised."""
        tree = ast.parse(self._code, self._name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, self._name, "exec"), space)
        if last is not None:
            # In this mode the value goes to `sys.displayhook`, which shows it unless it is None.
            exec(compile(ast.Interactive([last]), self._name, "single"), space)

    def explain(self, error: BaseException) -> None:
        """Print the traceback of what it raised, without our own frames."""
        import linecache
        import traceback

        lines = self._code.splitlines(keepends=True)
        linecache.cache[self._name] = (len(self._code), None, lines, self._name)
        found = error.__traceback__
        while found is not None and found.tb_frame.f_code.co_filename != self._name:
            found = found.tb_next
        traceback.print_exception(type(error), error, found)


def _namespace() -> dict[str, object]:
    """Return the namespace of the cells, that of a fresh main module, so that what they define can be pickled."""
    module = types.ModuleType("__main__")
    _OURS.append(sys.modules["__main__"])
    sys.modules["__main__"] = module
    return module.__dict__


_OURS: list[types.ModuleType] = []
"""Keeps this module alive."""


def _replay(cells: list[str], space: dict[str, object]) -> None:
    """Run cells again without a sound; how they end is known already."""
    heard = [os.dup(fd) for fd in (1, 2)]
    nothing = os.open(os.devnull, os.O_WRONLY)
    for fd in (1, 2):
        os.dup2(nothing, fd)
    process = os.getpid()
    for number, code in enumerate(cells, 1):
        with suppress(BaseException):
            Cell(code, f"<cell {number}>").run(space)
        if os.getpid() != process:  # What it forked ended here the first time.
            os._exit(0)
    _flush()
    for fd, kept in zip((1, 2), heard, strict=True):
        os.dup2(kept, fd)
        os.close(kept)
    os.close(nothing)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()


def _digests(home: str) -> dict[str, str]:
    """Return which files there are in a folder, and what is in them."""
    from hashlib import file_digest

    found: dict[str, str] = {}
    for folder, _, names in os.walk(home):
        for name in sorted(names):
            path = os.path.join(folder, name)
            if len(found) < MAX_KEPT and os.path.isfile(path) and not os.path.islink(path):
                with suppress(OSError), open(path, "rb") as file:
                    found[os.path.relpath(path, home)] = file_digest(file, "sha256").hexdigest()
    return found


def _end(home: str, mark: str, kept: dict[str, str]) -> None:
    """Tell that the last cell came to its end, and which files had been there before it."""
    path = os.path.join(home, KEPT_PREFIX + mark)
    # Not before its end, or it would come upon it.
    with suppress(OSError), open(path, "w", encoding="utf-8", errors="replace") as file:
        json.dump(kept, file)
    with suppress(OSError):
        os.write(1, mark.encode())


def main() -> None:
    """Run what comes on standard input."""
    if HASH_SEED not in os.environ:
        environment = {**os.environ, HASH_SEED: "0"}
        os.execve(sys.executable, [sys.executable, "-s", *sys.argv], environment)
    request = json.loads(sys.stdin.buffer.read())
    os.unlink(sys.argv[0])
    mark, earlier, seed = request["mark"], request["earlier"], request["seed"]
    sys.argv = [""]
    process, home = os.getpid(), os.getcwd()
    space = _namespace()
    if seed is not None:
        import random

        random.seed(seed)
    kept: dict[str, str] = {}
    if earlier:
        _replay(earlier, space)
        kept = _digests(home)
    os.write(1, mark.encode())
    cell = Cell(request["code"], f"<cell {len(earlier) + 1}>")
    try:
        cell.run(space)
    except SystemExit:
        raise
    except BaseException as error:
        cell.explain(error)
        sys.exit(1)
    finally:
        _flush()
        if os.getpid() == process:  # What it forked comes here too.
            _end(home, mark, kept)


if __name__ == "__main__":
    main()
