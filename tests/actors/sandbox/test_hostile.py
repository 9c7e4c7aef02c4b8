"""Code that means ill: what it finds, what it reaches, and how far it gets."""

from __future__ import annotations

import os
import socket
import struct
import sys
from pathlib import Path

import pytest

from ayllu.actors.sandbox import Limits, Outcome, run_python
from ayllu.actors.sandbox.seccomp import seccomp_program
from ayllu.schemas import Unsupported

ROOT = Path(__file__).parents[3]


async def told(code: str, limits: Limits | None = None) -> str:
    """Return what code says that ends well."""
    outcome = await run_python(code, limits=limits or Limits())
    assert (outcome.how, outcome.status, outcome.stderr) == ("exited", 0, "")
    return outcome.stdout


def end(outcome: Outcome) -> tuple[str, int | None]:
    return outcome.how, outcome.status


# What it sees.


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-closed")
async def test_there_is_no_network() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener:
        code = f"""
import os, socket
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_VSOCK, socket.AF_NETLINK, socket.AF_PACKET):
    try: socket.socket(family, socket.SOCK_DGRAM)
    except PermissionError: print("refused")
try: socket.create_connection(("127.0.0.1", {listener.getsockname()[1]}), 1)
except OSError as error: print(error)
print(open("/proc/net/dev").read().count(":"))
"""
        assert await told(code) == "refused\n" * 5 + "[Errno 1] Operation not permitted\n1\n"


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-closed")
async def test_the_hosts_files_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    paths = [
        *("/etc/passwd", "/etc/shadow", "/etc/hostname", "/etc/resolv.conf", "/root", "/home"),
        *("/var", "/run", "/sys", "/mnt", "/opt", "/srv", "/usr/local", "/usr/src", "/boot"),
        *(str(ROOT), str(Path.home()), str(tmp_path), sys.prefix, "/dev/shm/../sda", "/dev/tty"),
    ]
    code = f"""
import os, sys
print([path for path in {paths!r} if os.path.exists(path)])
print(sorted(os.listdir("/")), sorted(os.listdir("/etc")), sorted(os.listdir("/dev")))
print([path for path in sys.path if os.path.isdir(path) and "packages" in path and os.listdir(path)])
"""
    found, places, packages = (await told(code)).splitlines()
    assert found == "[]"
    assert set(eval(places.split("] [")[0] + "]")) <= {
        *("bin", "dev", "etc", "inside.py", "lib", "lib32", "lib64", "proc", "sandbox", "tmp"),
        "usr",
    }
    assert "['ld.so.cache']" in places
    assert "['fd', 'full', 'null', 'random', 'shm', 'urandom', 'zero']" in places
    assert packages == "[]"


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-closed")
async def test_packages_cannot_be_imported() -> None:
    for name in ("ayllu", "msgspec", "anyio", "pip", "numpy"):
        outcome = await run_python(f"import {name}")
        assert f"No module named '{name}'" in outcome.stderr


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-closed")
async def test_nothing_can_be_written_but_its_folders() -> None:
    code = """
import os
for path in ("/x", "/usr/x", "/usr/bin/x", "/dev/x", "/etc/x", "/inside.py", "/proc/x", "/usr/lib/python3/dist-packages/x"):
    try: open(path, "w")
    except OSError: continue
    print(path)
for path in ("/tmp/x", "/dev/shm/x", "/dev/null"):
    open(path, "w").close()
"""
    assert await told(code) == ""


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-closed")
async def test_the_environment_is_not_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AYLLU_SECRET", "s3cret")
    code = """
import os
print(sorted(os.environ))
for pid in os.listdir("/proc"):
    if pid.isdigit():
        try: data = open(f"/proc/{pid}/environ", "rb").read()
        except PermissionError: continue
        assert b"s3cret" not in data and b"AYLLU" not in data
print(os.uname().nodename, os.getuid(), os.getgid(), os.getgroups())
"""
    names, identity = (await told(code)).splitlines()
    assert names == str(["HOME", "LANG", "PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"])
    assert identity.startswith("sandbox 1000 1000")


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-closed")
async def test_only_its_own_processes_and_descriptors_are_there() -> None:
    code = """
import os
print(sorted(int(pid) for pid in os.listdir("/proc") if pid.isdigit()) == [1, os.getpid()])
print(sorted(os.listdir("/proc/self/fd")) == ["0", "1", "2", "3"])
print(os.getsid(0) == os.getpid(), os.getppid())
try: print(os.ttyname(0))
except OSError: print("no terminal")
print([line for line in open("/proc/self/status") if line.startswith(("CapEff", "CapBnd", "NoNewPrivs", "Seccomp:"))])
"""
    said = (await told(code)).splitlines()
    assert said[:4] == ["True", "True", "True 1", "no terminal"]
    for line in ("CapEff:\\t0000000000000000", "CapBnd:\\t0000000000000000", "NoNewPrivs:\\t1"):
        assert line in said[4]
    assert "Seccomp:\\t2" in said[4]


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-closed")
async def test_the_first_process_is_out_of_reach() -> None:
    code = """
import os
for name in ("mem", "environ", "fd", "root", "cwd", "exe", "fd/0", "root/etc", "map_files"):
    path = f"/proc/1/{name}"
    for attempt in (lambda: open(path, "r+b"), lambda: os.listdir(path), lambda: os.readlink(path)):
        try: attempt()
        except OSError: continue
        print(name)
for number in range(1, 65):
    if number not in (32, 33): os.kill(os.getppid(), number)
open("left", "w").close()
"""
    outcome = await run_python(code)
    assert (end(outcome), outcome.stdout, outcome.stderr) == (("exited", 0), "", "")
    assert outcome.files == {"left": b""}


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-closed")
async def test_signals_reach_nobody_outside() -> None:
    code = f"""
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for pid in ({os.getpid()}, {os.getppid()}):
    try: os.kill(pid, signal.SIGKILL)
    except ProcessLookupError: print("no such process")
os.killpg(0, signal.SIGTERM)
try: os.kill(-1, signal.SIGKILL)
except ProcessLookupError: print("nobody else")
"""
    assert await told(code) == "no such process\n" * 2 + "nobody else\n"


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-closed")
async def test_it_cannot_free_itself() -> None:
    code = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
tried = {
    "user namespace": lambda: libc.unshare(0x10000000),
    "user namespace by clone": lambda: libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0),
    "mount": lambda: libc.mount(b"none", b"/tmp", b"tmpfs", 0, None),
    "umount": lambda: libc.umount2(b"/usr", 2),
    "trace": lambda: libc.ptrace(16, 1, 0, 0),
    "shared memory": lambda: libc.shmget(0, 1 << 20, 0o1600),
    "pages in pipes": lambda: libc.vmsplice(1, None, 0, 0),
    "keys": lambda: libc.syscall(250, 0, -3, 1),
    "rings": lambda: libc.syscall(425, 8, 0),
    "second table": lambda: libc.syscall(0x40000000 + 39),
    "chroot": lambda: libc.chroot(b"/usr"),
    "root": lambda: libc.setuid(0),
}
for name, attempt in tried.items():
    pid = os.getpid()
    result = attempt()
    if os.getpid() != pid: os._exit(0)
    if result != -1: print(name, result)
try: os.memfd_create("x")
except PermissionError: pass
else: print("memfd")
"""
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers are those of x86-64")
    assert await told(code) == ""


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-closed")
async def test_links_do_not_lead_out() -> None:
    code = """
import os
os.symlink("/etc/passwd", "to_file")
os.symlink("/proc/1/root", "to_root")
os.symlink("/", "to_folder")
os.symlink("loop", "loop")
os.mkfifo("pipe")
os.mkdir("closed"); open("closed/x", "w").close(); os.chmod("closed", 0)
os.mkdir("d"); os.symlink("../..", "d/up")
open("unreadable", "w").close(); os.chmod("unreadable", 0)
open(b"\\xff", "w").close()
open("a\\nb", "w").close()
open("plain", "w").write("x"); os.link("plain", "hard")
import socket
socket.socket(socket.AF_UNIX).bind("socket")
"""
    outcome = await run_python(code)
    assert (end(outcome), outcome.stderr) == (("exited", 0), "")
    assert outcome.files == {"plain": b"x", "hard": b"x"}
    assert set(outcome.left_out) == {
        *("to_file", "to_root", "to_folder", "loop", "pipe", "closed", "d/up", "unreadable"),
        *("socket", r"'a\nb'"),
    }
    assert outcome.left_out_count == 11


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-closed", "sandbox-bounded")
async def test_folders_as_deep_as_can_be_are_borne() -> None:
    code = """
import os
for _ in range(3000):
    os.mkdir("d"); os.chdir("d")
open("x", "w").close()
"""
    outcome = await run_python(code)
    assert end(outcome) == ("exited", 0)
    assert (outcome.files, outcome.left_out_count) == ({}, 1)


# How far it gets.


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-bounded")
async def test_an_endless_loop_is_ended() -> None:
    outcome = await run_python("print('here')\nwhile True: pass", limits=Limits(seconds=1))
    assert end(outcome) == ("timeout", None)
    assert outcome.stdout == "here\n"
    assert outcome.summary == "it ran longer than 1 seconds and was ended"


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-bounded")
async def test_signals_can_be_ignored_but_the_clock_cannot() -> None:
    code = """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
while True: signal.pause()
"""
    assert end(await run_python(code, limits=Limits(seconds=1))) == ("timeout", None)


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-bounded")
async def test_time_on_the_processor_is_bounded() -> None:
    outcome = await run_python("while True: pass", limits=Limits(cpu_seconds=1, seconds=60))
    assert end(outcome) == ("cpu", None)
    assert outcome.summary.startswith("it used more than 1 seconds of a processor's time")


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-bounded")
async def test_a_fork_bomb_gets_no_further_than_its_processes() -> None:
    code = """
import os, time
made = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(100)
            os._exit(0)
        made += 1
except BlockingIOError:
    print(made)
"""
    assert await told(code, Limits(processes=5)) == "4\n"


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-bounded")
async def test_a_fork_bomb_that_goes_on_is_ended() -> None:
    code = """
import os
while True:
    try: os.fork()
    except OSError: pass
"""
    assert end(await run_python(code, limits=Limits(seconds=2))) == ("timeout", None)


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-bounded")
async def test_threads_count_as_processes() -> None:
    code = """
import threading
event = threading.Event()
try:
    for made in range(100): threading.Thread(target=event.wait, daemon=True).start()
except RuntimeError: print(made)
"""
    assert await told(code, Limits(processes=4)) == "3\n"


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-bounded")
async def test_a_process_gets_no_more_memory_than_it_may() -> None:
    outcome = await run_python("x = bytearray(1 << 30)", limits=Limits(memory_bytes=128 << 20))
    assert end(outcome) == ("exited", 1)
    assert "MemoryError" in outcome.stderr


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-bounded")
@pytest.mark.parametrize("hidden", [False, True])
async def test_processes_together_get_no_more_memory_than_one_may(hidden: bool) -> None:
    code = f"""
import ctypes, os, time
for _ in range(8):
    if os.fork() == 0: break
if {hidden}: ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
x = bytearray(os.urandom(1 << 20)) * 64
time.sleep(100)
"""
    outcome = await run_python(code, limits=Limits(memory_bytes=192 << 20, seconds=60))
    assert end(outcome) == ("memory", None)
    assert outcome.summary == "it used more than 192 MiB of memory and was ended"
    assert outcome.files == {}


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-bounded")
async def test_memory_that_processes_share_counts_once() -> None:
    code = """
import os
x = bytearray(os.urandom(1 << 20)) * 64
children = []
for _ in range(6):
    if (child := os.fork()) == 0:
        import time; time.sleep(0.5); os._exit(0)
    children.append(child)
for child in children: os.waitpid(child, 0)
"""
    assert await told(code, Limits(memory_bytes=192 << 20, seconds=60)) == ""


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-bounded")
async def test_what_waits_in_pipes_and_sockets_is_bounded() -> None:
    """It is memory of no process, which no limit on memory counts."""
    code = """
import fcntl, os, socket
waiting, kept = 0, []
def fill(fd):
    global waiting
    os.set_blocking(fd, False)
    try:
        while True: waiting += os.write(fd, bytes(1 << 16))
    except BlockingIOError: pass
try:
    while True:
        kept += socket.socketpair()
        for one in kept[-2:]:
            try: one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)
            except PermissionError: pass
            fill(one.fileno())
except OSError as error: print(error.strerror)
print(waiting < 16 << 20)
for one in kept: one.close()
waiting = 0
try:
    while True:
        kept.append(pipe := os.pipe())
        try: fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, 1 << 30)
        except OSError: pass
        try: fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, 1 << 20)
        except OSError: pass
        fill(pipe[1])
except OSError as error: print(error.strerror)
print(waiting < 65 << 20)
"""
    assert await told(code) == "Too many open files\nTrue\n" * 2


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-bounded")
async def test_the_disk_is_bounded() -> None:
    code = """
import os
total = 0
for folder in ("/tmp", "/dev/shm", "."):
    try:
        with open(f"{folder}/x{total}", "wb", buffering=0) as file:
            while True: total += file.write(bytes(1 << 16))
    except OSError as error: print(error.strerror)
print(total <= 4 << 20)
"""
    said = await told(code, Limits(disk_bytes=4 << 20))
    assert said.count("No space left on device") + said.count("File too large") == 3
    assert said.endswith("True\n")


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-bounded")
@pytest.mark.parametrize("count", [10**9, 150])  # For ever, and to its own end.
async def test_the_number_of_files_is_bounded(count: int) -> None:
    code = f"import os\nfor i in range({count}): os.mkdir(f'/tmp/{{i}}')"
    outcome = await run_python(code, limits=Limits(disk_files=100, seconds=60))
    assert end(outcome) == ("disk", None)
    assert outcome.summary == "it made more than 100 files and was ended"


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-bounded")
@pytest.mark.parametrize("fd", [1, 2])
async def test_a_flood_of_output_is_cut(fd: int) -> None:
    code = f"import os\nwhile True: os.write({fd}, b'x' * 65536)"
    outcome = await run_python(code, limits=Limits(output_bytes=100_000, seconds=60))
    assert (end(outcome), outcome.cut) == (("output", None), True)
    assert (outcome.stdout, outcome.stderr)[fd - 1] == "x" * 100_000
    assert outcome.summary == "it wrote more than 97.66 KiB of output and was ended"


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-bounded")
async def test_as_much_output_as_may_be_is_not_cut() -> None:
    outcome = await run_python("print('x' * 999)", limits=Limits(output_bytes=1000))
    assert (end(outcome), outcome.cut, len(outcome.stdout)) == (("exited", 0), False, 1000)


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-bounded", "sandbox-ends")
async def test_a_grandchild_does_not_outlive_the_code() -> None:
    code = """
import os
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True: os.write(1, b"x")
    os._exit(0)
os.wait()
os.write(2, b"done")
"""
    outcome = await run_python(code, limits=Limits(seconds=60))
    # It writes until the end, and that may be more than there is room for.
    assert (outcome.how, outcome.stderr) in (("exited", "done"), ("output", "done"))


@pytest.mark.asyncio
@pytest.mark.requirement("sandbox-bounded")
async def test_a_signal_that_ends_it_is_told() -> None:
    outcome = await run_python("import os; os.kill(os.getpid(), 11)")
    assert end(outcome) == ("killed", -11)
    assert outcome.summary == "it was killed by SIGSEGV"
    assert end(await run_python("import os; os.kill(os.getpid(), 9)")) == ("killed", -9)


# The filter, on machines that are not at hand too.


def filtered(program: bytes, architecture: int, number: int, argument: int) -> int:
    """Run a filter as the kernel does."""
    instructions = list(struct.iter_unpack("=HBBI", program))
    data = {0: number, 4: architecture, 16: argument}
    position, value = 0, 0
    while True:
        code, yes, no, operand = instructions[position]
        position += 1
        match code:
            case 0x20:
                value = data[operand]
            case 0x15:
                position += yes if value == operand else no
            case 0x35:
                position += yes if value >= operand else no
            case 0x06:
                return int(operand)
            case _:
                raise AssertionError(code)


@pytest.mark.requirement("sandbox-closed")
@pytest.mark.parametrize(
    ("machine", "architecture", "new_socket", "refused", "allowed"),
    [
        ("x86_64", 0xC000003E, 41, {29, 64, 68, 101, 248, 319, 321, 323, 425, 447}, {0, 56, 59}),
        ("aarch64", 0xC00000B7, 198, {117, 186, 190, 194, 217, 279, 280, 425}, {63, 220, 221}),
    ],
)
def test_the_filter_refuses_what_it_should(
    machine: str, architecture: int, new_socket: int, refused: set[int], allowed: set[int]
) -> None:
    program = seccomp_program(machine)
    answers = {n: filtered(program, architecture, n, 0) for n in range(600) if n != new_socket}
    assert {n for n in refused if answers[n] != 0x50001} == set()
    assert {n for n in allowed if answers[n] != 0x7FFF0000} == set()
    assert sum(answer == 0x50001 for answer in answers.values()) == 33
    assert filtered(program, architecture, new_socket, socket.AF_UNIX) == 0x7FFF0000
    assert filtered(program, architecture, new_socket, socket.AF_INET) == 0x50001
    assert filtered(program, architecture, 0x40000000, 0) == 0x50001
    assert filtered(program, 0x40000003, 0, 0) == 0x80000000


@pytest.mark.requirement("sandbox-fails-closed")
def test_a_machine_whose_calls_are_not_known_has_no_sandbox() -> None:
    with pytest.raises(Unsupported):
        seccomp_program("riscv64")
