"""Python for models: what they are told, what goes on from call to call, and code that means ill."""

from __future__ import annotations

import base64
import itertools
import os
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.processes import descendants

from ayllu.actors.sandbox import require_sandbox
from ayllu.actors.tools.actor import ToolsActor
from ayllu.actors.tools.code_interpreter import MAX_FILE_BYTES, MAX_FILES, CodeInterpreter
from ayllu.actors.tools.settings import CodeInterpreterSettings
from ayllu.schemas import (
    Attachment,
    AylluError,
    Content,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    TooLarge,
    ToolRequest,
    Unsupported,
)


def sandbox() -> bool:
    try:
        require_sandbox()
    except Unsupported:
        return False
    return True


pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.skipif(not sandbox(), reason="there is no bubblewrap here"),
]

ENDED = "\n[it ended with exit status 0]"


def actor(**values: Any) -> ToolsActor:
    return ToolsActor([CodeInterpreter(CodeInterpreterSettings(**values))])


async def content(code: str, *earlier: str, keep: bool | None = None, **values: Any) -> Content:
    """Return what a call is answered, on a worker that knows of no other call."""
    arguments: dict[str, Any] = {"code": code}
    if keep if keep is not None else earlier:
        arguments["keep_state"] = True
    kept = [{"code": one, "keep_state": True} for one in earlier]
    request = ToolRequest("code_interpreter", arguments, kept)
    return (await actor(**values).call(request)).content


async def told(code: str, *earlier: str, **values: Any) -> str:
    """Return the text of the answer to a call that leaves no files."""
    answer = await content(code, *earlier, **values)
    assert isinstance(answer, str)
    return answer


async def error_of(code: str, *earlier: str, **values: Any) -> AylluError:
    with pytest.raises(AylluError) as raised:
        await content(code, *earlier, **values)
    assert not raised.value.retryable
    return raised.value


# What comes back.


@pytest.mark.requirement("tool-code")
@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("print('hello')", f"hello{ENDED}"),
        ("6 * 7", f"42{ENDED}"),
        ("print('a')\n'b'", f"a\n'b'{ENDED}"),
        ("x = 5", f"[nothing was printed]{ENDED}"),
        ("None", f"[nothing was printed]{ENDED}"),
        ("def f(): return 1\nf()", f"1{ENDED}"),
        ("if True:\n    5", f"[nothing was printed]{ENDED}"),
        ("# nothing", f"[nothing was printed]{ENDED}"),
        ("__name__", f"'__main__'{ENDED}"),
        ("import sys; print('e', file=sys.stderr)", f"[stderr]\ne{ENDED}"),
        ("import sys; print('o'); sys.exit(3)", "o\n[it ended with exit status 3]"),
        ("import os; os.write(1, b'o'); os._exit(4)", "o\n[it ended with exit status 4]"),
        (
            "import os; os.kill(os.getpid(), 11)",
            "[nothing was printed]\n[it was killed by SIGSEGV]",
        ),
        (
            "import pickle\nclass A: pass\ntype(pickle.loads(pickle.dumps(A()))) is A",
            f"True{ENDED}",
        ),
        ("import sys; sys.argv, open('main.py')", None),
        ("import os\nif pid := os.fork(): os.waitpid(pid, 0)\nprint('x')", f"x\nx{ENDED}"),
        ("print('\\xe9\u20ac')", f"é€{ENDED}"),
        ("import sys; sys.stdout.buffer.write(b'\\xff'); None", f"\ufffd{ENDED}"),
    ],
)
async def test_what_code_says(code: str, answer: str | None) -> None:
    found = await told(code)
    if answer is not None:
        assert found == answer
    else:  # Nothing of ours lies in its folder.
        assert "No such file or directory: 'main.py'" in found


@pytest.mark.requirement("tool-code")
async def test_tracebacks_show_the_code_and_nothing_of_ours() -> None:
    assert await told("def f(x):\n    return 1 / x\nprint('so far')\nf(0)") == (
        "so far\n[stderr]\nTraceback (most recent call last):\n"
        '  File "<cell 1>", line 4, in <module>\n    f(0)\n'
        '  File "<cell 1>", line 2, in f\n    return 1 / x\n           ~~^~~\n'
        "ZeroDivisionError: division by zero\n[it ended with exit status 1]"
    )
    for code in ("a b", "print('\\ud800')", "\0", "(" * 300, "raise KeyboardInterrupt"):
        found = await told(code)
        assert found.startswith("[stderr]\n")
        assert "main.py" not in found
        assert "exit status 0" not in found


@pytest.mark.requirement("tool-code")
async def test_files_come_back_as_attachments() -> None:
    code = """
import os
open("b.svg", "w").write("<svg/>")
open("a.csv", "w").write("x,y\\n")
open("data", "wb").write(bytes(3))
open("README", "w").write("text")
os.makedirs("folder/deep"); open("folder/deep/p.PNG", "wb").write(b"\\x89PNG")
os.symlink("/etc/passwd", "link.txt")
"""
    answer = await content(code)
    assert isinstance(answer, list)
    text, *attachments = answer
    assert text == (
        "[nothing was printed]\n[it ended with exit status 0]\n"
        "[files: README (text/plain, 4 bytes), a.csv (text/csv, 4 bytes), b.svg (image/svg+xml, 6 bytes), "
        "data (application/octet-stream, 3 bytes), folder/deep/p.PNG (image/png, 4 bytes)]\n"
        "[1 of the files that it left are not returned, because they are too many, too large, or no plain files: link.txt]"
    )
    expected = [
        ("text/plain", b"text"),
        ("text/csv", b"x,y\n"),
        ("image/svg+xml", b"<svg/>"),
        ("application/octet-stream", bytes(3)),
        ("image/png", b"\x89PNG"),
    ]
    assert attachments == [
        Attachment(f"data:{kind};base64,{base64.b64encode(data).decode()}", kind)
        for kind, data in expected
    ]


@pytest.mark.requirement("tool-code")
async def test_files_are_bounded_and_what_is_left_out_is_said() -> None:
    answer = await content("for n in range(30): open(f'{n:02}.txt', 'w').write('x')")
    assert isinstance(answer, list)
    assert len(answer) == 1 + MAX_FILES
    assert "20 of the files that it left are not returned" in str(answer[0])
    assert "10.txt, 11.txt" in str(answer[0])
    answer = await content(
        f"open('big', 'wb').write(bytes({MAX_FILE_BYTES + 1})); open('x' * 200, 'w').write('x')"
    )
    assert isinstance(answer, list)
    assert "1 of the files that it left are not returned" in str(answer[0])
    assert str(answer[0]).endswith(": big]")
    assert f"{'x' * 100}... (text/plain, 1 bytes)" in str(answer[0])


@pytest.mark.requirement("tool-code")
async def test_wrong_arguments_are_refused() -> None:
    for wrong in (
        {},
        {"code": ""},
        {"code": 5},
        {"code": "1", "keep_state": 1},
        {"code": "1", "x": 1},
        {"code": "1" * 100_001},
    ):
        with pytest.raises(InvalidRequest):
            await actor().call(ToolRequest("code_interpreter", wrong))


@pytest.mark.requirement("tool-code")
async def test_calls_wait_for_each_other_but_not_for_ever() -> None:
    one = actor(at_once=1, seconds=1)
    errors: list[AylluError] = []

    async def call(code: str) -> None:
        try:
            await one.call(ToolRequest("code_interpreter", {"code": code}))
        except AylluError as error:
            errors.append(error)

    async with anyio.create_task_group() as tasks:
        for code in ("while True: pass", "while True: pass", "while True: pass"):
            tasks.start_soon(call, code)
    assert {type(error) for error in errors} == {Overloaded}
    assert all(error.retryable for error in errors)
    await call("1")
    assert len(errors) < 3


# Sessions.


@pytest.mark.requirement("tool-code-state")
async def test_calls_go_on_from_each_other() -> None:
    cells = [
        "import math\nx = {'a': 1}\nprint('loud')",
        "def double(n): return 2 * n\nclass P: pass\np = P()",
        "x['b'] = double(math.isqrt(16)); open('kept.txt', 'w').write('kept'); 1 / 0",
        "import sys; y = 5; sys.exit(2)",
    ]
    assert await content("x, double(4), open('kept.txt').read(), y, type(p).__name__", *cells) == (
        f"({{'a': 1, 'b': 8}}, 8, 'kept', 5, 'P'){ENDED}"
    )
    assert await told("import os; os.listdir()", "x = 1") == f"[]{ENDED}"
    # Without it, a call begins anew; and sees nothing that does not want to be seen.
    assert "name 'x' is not defined" in await told("x", *cells, keep=False)
    request = ToolRequest(
        "code_interpreter",
        {"code": "x", "keep_state": True},
        [{"code": "x = 1"}, {"code": "x = 2", "keep_state": False}, {"keep_state": True}, {}],
    )
    assert "name 'x' is not defined" in str((await actor().call(request)).content)


@pytest.mark.requirement("tool-code-state")
async def test_chance_is_the_same_when_it_is_run_again() -> None:
    first = (
        "import random\nvalues = [random.random() for _ in range(3)]\nnames = {'a', 'b', 'c', 'd'}"
    )
    said = [await told("values, list(names), random.random()", first) for _ in range(2)]
    assert said[0] == said[1]
    shown = await told(f"{first}\nvalues, list(names), random.random()", keep=True)
    assert shown != said[0]  # Another session.
    lines = [await told("import random; random.random()") for _ in range(2)]
    assert lines[0] != lines[1]


@pytest.mark.requirement("tool-code-state")
async def test_only_what_is_new_is_heard_and_returned() -> None:
    cells = [
        "open('old.txt', 'w').write('1'); open('changed.txt', 'w').write('1'); open('gone.txt', 'w').close()",
        "import os, subprocess, sys\nprint('x' * 100_000)\nprint('y', file=sys.stderr)\n"
        "_ = subprocess.run(['/bin/echo', 'z'])\nos.write(1, b'w')\nos.mkdir('d'); os.chdir('d')\n"
        "if os.fork() == 0: raise SystemExit",
    ]
    answer = await content(
        "open('../changed.txt', 'w').write('2'); os.remove('../gone.txt'); open('new.txt', 'w').write('3')",
        *cells,
        output_kib=1,
    )
    assert isinstance(answer, list)
    assert answer[0] == (
        f"1{ENDED}\n[files: changed.txt (text/plain, 1 bytes), d/new.txt (text/plain, 1 bytes)]"
    )


@pytest.mark.requirement("tool-code-state")
async def test_a_fork_that_ran_to_its_end_does_not_run_on() -> None:
    assert await told("import os; print(x)", "import os; x = 1; os.fork()", "x += 1") == f"2{ENDED}"


@pytest.mark.requirement("tool-code-state")
@pytest.mark.parametrize(
    ("code", "error", "why"),
    [
        ("print('so far'); import os; os._exit(0)", InvalidRequest, "it ended with exit status 0"),
        (
            "print('so far', flush=True); import os; os.kill(os.getpid(), 9)",
            InvalidRequest,
            "SIGKILL",
        ),
        ("print('so far')\nwhile True: pass", DeadlineExceeded, "longer than 1 seconds"),
        ("print('so far')\nwhile True: print('x' * 1000)", TooLarge, "more than 16 KiB of output"),
    ],
)
async def test_what_does_not_come_to_its_end_is_not_kept(
    code: str, error: type[AylluError], why: str
) -> None:
    found = await error_of(code, keep=True, seconds=1)
    assert type(found) is error
    assert why in found.message
    assert "nothing of this call is kept" in found.message
    assert "so far" in found.message or error is TooLarge
    assert len(found.message) < 1900


@pytest.mark.requirement("tool-code-state")
@pytest.mark.parametrize("earlier", ["import os; os._exit(0)", "while True: pass"])
async def test_a_session_that_cannot_be_run_again_says_so(earlier: str) -> None:
    found = await error_of("print('mine')", earlier, seconds=1)
    assert "this call did not begin" in found.message
    assert "mine" not in found.message


@pytest.mark.requirement("tool-code-state")
async def test_tampering_deceives_only_itself() -> None:
    tamper = """
import gc, sys, os
for frame in list(sys._current_frames().values()):
    while frame:
        mark = frame.f_locals.get("mark")
        if mark:
            os.write(1, mark.encode()); print("forged", mark)
            open(".kept-" + mark, "w").write('["x"]')
        frame = frame.f_back
"""
    answer = str(await told(tamper))
    assert "forged" in answer
    answer = str(await told("print('real')", tamper))
    assert answer == f"real{ENDED}"


# Code that means ill.

HOSTILE = {
    "network": (
        "import socket\nsocket.create_connection(('127.0.0.1', PORT), 1)",
        "PermissionError: [Errno 1] Operation not permitted",
    ),
    "network of others": (
        "import urllib.request\nurllib.request.urlopen('http://example.com', timeout=2)",
        "name resolution",
    ),
    "host files": (
        "for path in ('/etc/passwd', '/root', '/home', HERE, '/var', '/proc/1/root/etc'):\n"
        "    try: print(path, open(path))\n"
        "    except OSError as error: print(error.strerror)",
        "No such file or directory",
    ),
    "environment": (
        "import os\nsorted(os.environ), [open(f'/proc/{p}/environ').read() for p in ('self',)]",
        "PYTHONHASHSEED",
    ),
    "fork bomb": (
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "it ran longer than 1 seconds and was ended",
    ),
    "fork bomb that notices": (
        "import os, time\nwhile True:\n    if os.fork() == 0: time.sleep(99)",
        "BlockingIOError: [Errno 11] Resource temporarily unavailable",
    ),
    "memory bomb": ("x = bytearray(1 << 40)", "MemoryError"),
    "memory bomb of many": (
        "import os, time\nfor _ in range(8):\n    if os.fork() == 0:\n        x = bytearray(b'x') * (50 << 20)\n"
        "        time.sleep(99)\ntime.sleep(99)",
        "it used more than 128 MiB of memory and was ended",
    ),
    "full disk": (
        "with open('x', 'wb') as file:\n    while True: file.write(bytes(1 << 20))",
        "OSError: [Errno 27] File too large",
    ),
    "full disk of many": (
        "for n in range(99):\n    open(str(n), 'wb').write(bytes(1 << 20))",
        "OSError: [Errno 28] No space left on device",
    ),
    "many files": (
        "import os\nfor n in range(10**6): os.mkdir(str(n))",
        "it made more than 4096 files and was ended",
    ),
    "endless loop": ("print('here', flush=True)\nwhile True: pass", "it ran longer than 1 seconds"),
    "endless sleep": (
        "import time; time.sleep(10**6)",
        "it ran longer than 1 seconds and was ended",
    ),
    "flood": ("while True: print('x' * 1000)", "it wrote more than 8 KiB of output and was ended"),
    "flood of errors": (
        "import sys\nwhile True: print('x' * 1000, file=sys.stderr)",
        "it wrote more than 8 KiB of output and was ended",
    ),
    "links": (
        "import os\nos.symlink('/', 'root'); os.symlink('/proc/1/root', 'up')\nprint(os.path.exists('root/etc/passwd'))",
        "False\n[it ended with exit status 0]\n[2 of the files that it left are not returned",
    ),
    "proc": (
        "for name in ('mem', 'environ', 'root', 'fd/0', 'cwd'):\n"
        "    try: open(f'/proc/1/{name}', 'rb').read(1); print('open', name)\n"
        "    except OSError as error: print(error.strerror)\n"
        "open('/proc/sys/kernel/core_pattern', 'w')",
        "Permission denied: '/proc/sys/kernel/core_pattern'",
    ),
    "signals": (
        "import os\n"
        "for pid in (PID, PARENT):\n"
        "    try: os.kill(pid, 9)\n"
        "    except ProcessLookupError: print('no such process')\n"
        "os.kill(1, 9); os.kill(os.getppid(), 15)",
        f"no such process\nno such process{ENDED}",
    ),
    "signals to all": ("import os\nos.kill(-1, 9)", "ProcessLookupError"),
    "stack": ("def f(): f()\nf()", "RecursionError"),
    "crash": ("import ctypes; ctypes.string_at(0)", "it was killed by SIGSEGV"),
}


@pytest.mark.requirement("tool-code-contained")
@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_code_is_contained_and_the_model_is_told(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said = HOSTILE[name]
    monkeypatch.setenv("AYLLU_SECRET", "s3cret")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for word, value in (
            ("PORT", listener.getsockname()[1]),
            ("HERE", str(Path(__file__).parent)),
            ("PID", os.getpid()),
            ("PARENT", os.getppid()),
        ):
            code = code.replace(word, repr(value))
        limits: dict[str, Any] = {"memory_mib": 128, "disk_mib": 8, "output_kib": 8, "seconds": 20}
        if "longer than 1 seconds" in said:
            limits["seconds"] = 1
        answer = await content(code, **limits)
    found = str(answer[0]) if isinstance(answer, list) else str(answer)
    assert said in found
    for secret in ("s3cret", "AYLLU", "root:x:0", "open mem", "open root"):
        assert secret not in found


def open_files() -> set[str]:
    return {fd.name for fd in Path("/proc/self/fd").iterdir()}


@pytest.mark.requirement("tool-code-contained")
async def test_a_hundred_calls_leave_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    one = actor(at_once=4)
    codes = (
        "open('x.txt', 'w').write('x')",
        "import os, time\nif os.fork() == 0: os.setsid(); time.sleep(99)",
        "while True: print('x' * 9999)",
        "x + 1",
    )

    async def call(code: str) -> None:
        keep = code.startswith("x")
        earlier = [{"code": "x = 1", "keep_state": True}]
        await one.call(ToolRequest("code_interpreter", {"code": code, "keep_state": keep}, earlier))

    await call(codes[0])
    before, files = descendants(os.getpid()), open_files()
    threads = threading.active_count()
    async with anyio.create_task_group() as tasks:
        for code in itertools.chain.from_iterable(itertools.repeat(codes, 25)):
            tasks.start_soon(call, code)
    assert descendants(os.getpid()).keys() <= before.keys()
    assert open_files() == files
    assert os.listdir(tmp_path) == []  # noqa: PTH208
    assert threading.active_count() <= threads + 4
    assert one.service_stats() == {"calls": 101, "failed": 0}


@pytest.mark.requirement("tool-code-contained")
async def test_a_cancelled_call_leaves_nothing_behind() -> None:
    before = descendants(os.getpid())
    for milliseconds in (10, 30, 60, 200):
        with anyio.move_on_after(milliseconds / 1000):
            await content("while True: pass", keep=True)
        assert descendants(os.getpid()).keys() <= before.keys()
