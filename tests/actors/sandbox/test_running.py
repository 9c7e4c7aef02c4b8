"""Code that means well: what goes in and what comes out."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ayllu.actors.sandbox import How, Limits, Outcome, run_python
from ayllu.actors.sandbox.inside import CODE, EXITED, FILE, LEFT_OUT, MEMORY, RECORD
from ayllu.actors.sandbox.records import check_files, read_report, request
from ayllu.schemas import InvalidRequest, TooLarge

pytestmark = pytest.mark.requirement("sandbox-runs")


@pytest.mark.asyncio
async def test_output_and_status_come_back() -> None:
    outcome = await run_python("import sys; print('aú'); print('err', file=sys.stderr); exit(3)")
    assert (outcome.how, outcome.status, outcome.cut) == ("exited", 3, False)
    assert (outcome.stdout, outcome.stderr) == ("aú\n", "err\n")
    assert outcome.files == {}
    assert outcome.summary == "it ended with exit status 3"
    assert 0 < outcome.seconds < outcome.limits.seconds


@pytest.mark.asyncio
async def test_an_exception_has_its_traceback() -> None:
    outcome = await run_python("def f():\n    return 1 / 0\nf()\n")
    assert (outcome.how, outcome.status) == ("exited", 1)
    assert "main.py" in outcome.stderr
    assert "line 2" in outcome.stderr
    assert outcome.stderr.endswith("ZeroDivisionError: division by zero\n")


@pytest.mark.asyncio
@pytest.mark.parametrize("code", ["", "def", "# ñ", "x = 'a\r\nb'"])
async def test_code_may_be_any_text(code: str) -> None:
    outcome = await run_python(code)
    assert (outcome.how, outcome.status) == ("exited", 0 if code in ("", "# ñ") else 1)


@pytest.mark.asyncio
async def test_code_that_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        await run_python("'\ud800'")


@pytest.mark.asyncio
async def test_standard_input_is_the_codes_own() -> None:
    data = bytes(range(256)) * 4096
    code = "import sys, hashlib; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())"
    outcome = await run_python(code, stdin=data)
    assert outcome.stdout.strip() == hashlib.sha256(data).hexdigest()


@pytest.mark.asyncio
async def test_standard_input_need_not_be_read() -> None:
    outcome = await run_python("print(1)", stdin=b"x" * (4 << 20))
    assert (outcome.how, outcome.stdout) == ("exited", "1\n")


@pytest.mark.asyncio
async def test_output_that_is_no_text_is_replaced() -> None:
    outcome = await run_python("import os; os.write(1, b'a\\xff\\xc3b')")
    assert outcome.stdout == "a��b"


@pytest.mark.asyncio
async def test_files_go_in_and_come_out() -> None:
    code = """
import helper.deep, pathlib
pathlib.Path("out").mkdir()
pathlib.Path("out/ñ.bin").write_bytes(helper.deep.DATA)
pathlib.Path("changed").write_text(pathlib.Path("changed").read_text() + "!")
pathlib.Path("kept").rename("moved")
"""
    files = {
        "helper/deep.py": b"DATA = bytes(range(256))",
        "changed": b"old",
        "same": b"1",
        "kept": b"2",
    }
    outcome = await run_python(code, files=files)
    assert (outcome.status, outcome.stderr) == (0, "")
    assert outcome.files == {"out/ñ.bin": bytes(range(256)), "changed": b"old!", "moved": b"2"}
    assert outcome.left_out_count == 0


@pytest.mark.asyncio
async def test_what_is_too_much_is_left_out_and_told() -> None:
    code = """
open("big", "wb").write(bytes(5000))
open("small", "wb").write(bytes(10))
for i in range(30): open(f"x{i:02}", "wb").write(bytes(4000))
"""
    outcome = await run_python(code, limits=Limits(file_bytes=4096))
    assert outcome.files == {"small": bytes(10), "x00": bytes(4000)}
    assert outcome.left_out_count == 30
    assert outcome.left_out[:2] == ("big", "x01")
    assert len(outcome.left_out) == 20
    assert "30 of the files that it left are not returned: big, x01" in outcome.summary
    assert outcome.summary.endswith(", ...")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "name", ["", ".", "..", "/etc/x", "../x", "a/../b", "a//b", "./a", "a/", "a\0b", "n" * 300]
)
async def test_a_path_that_is_not_within_the_folder_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        await run_python("", files={name: b""})


@pytest.mark.asyncio
async def test_files_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(InvalidRequest):
        await run_python("", files={"a": b"", "a/b": b""})
    with pytest.raises(InvalidRequest):
        await run_python("", files={CODE: b""})


@pytest.mark.asyncio
async def test_files_that_do_not_fit_are_refused() -> None:
    limits = Limits(disk_bytes=1 << 20, disk_files=10)
    with pytest.raises(TooLarge):
        await run_python("", files={"a": bytes((1 << 20) + 1)}, limits=limits)
    with pytest.raises(TooLarge):
        await run_python("", files={f"{i}/a": b"" for i in range(5)}, limits=limits)
    # As much as fits is laid out.
    outcome = await run_python("", files={"a": bytes(1 << 20)}, limits=limits)
    assert (outcome.how, outcome.status) == ("exited", 0)


@pytest.mark.parametrize(
    "limits",
    [
        {"memory_bytes": 1 << 20},
        {"seconds": 0},
        {"cpu_seconds": 0},
        {"processes": 0},
        {"output_bytes": -1},
    ],
)
def test_limits_that_leave_no_room_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(InvalidRequest):
        Limits(**limits)


@pytest.mark.asyncio
async def test_threads_pools_and_temporary_files_work() -> None:
    code = """
import asyncio, multiprocessing, pathlib, subprocess, sys, tempfile, threading
threads = [threading.Thread(target=print, args=(i,)) for i in range(3)]
for t in threads: t.start(); t.join()
async def main():
    return await asyncio.to_thread(lambda: 7)
if __name__ == "__main__":
    print(asyncio.run(main()))
    with multiprocessing.Pool(2) as pool:
        print(pool.map(abs, [-1, -2]))
    with tempfile.NamedTemporaryFile() as file:
        print(pathlib.Path(file.name).parent)
    print(subprocess.run([sys.executable, "-c", "print(9)"], capture_output=True, text=True).stdout)
"""
    outcome = await run_python(code)
    assert outcome.stderr == ""
    assert outcome.stdout.split("\n") == ["0", "1", "2", "7", "[1, 2]", "/tmp", "9", "", ""]


@pytest.mark.parametrize(
    ("how", "status", "words"),
    [
        ("killed", -11, "it was killed by SIGSEGV"),
        ("killed", -999, "it was killed by signal 999"),
        ("killed", None, "it was killed"),
        ("memory", None, "it used more than 1.5 GiB of memory and was ended"),
        ("output", None, "it wrote more than 10 bytes of output and was ended"),
    ],
)
def test_what_happened_is_told_in_words(how: How, status: int | None, words: str) -> None:
    limits = Limits(memory_bytes=3 << 29, output_bytes=10)
    assert Outcome(how, status, "", "", False, 1.0, limits).summary == words


def report(*records: tuple[bytes, bytes, int, bytes]) -> bytes:
    return b"".join(
        RECORD.pack(kind, len(name), number) + name + content
        for kind, name, number, content in records
    )


def test_a_report_is_read() -> None:
    data = report(
        (FILE, b"a", 2, b"xy"),
        (LEFT_OUT, b"b", 0, b""),
        (LEFT_OUT, b"", 1, b""),
        (EXITED, b"", 4, b""),
    )
    read = read_report(data)
    assert read is not None
    assert (read.how, read.status, read.files) == ("exited", 4, {"a": b"xy"})
    assert (read.left_out, read.left_out_count) == (("b",), 1)
    assert read_report(data + b"x") is None
    assert all(read_report(data[:end]) is None for end in range(len(data)))


@pytest.mark.parametrize(
    "name", [b"../x", b"/etc/passwd", b"a/../../b", b"a\x1b[2J", b"..", b"a\nb"]
)
def test_a_forged_path_is_never_a_file(name: bytes) -> None:
    read = read_report(report((FILE, name, 1, b"x"), (EXITED, b"", 0, b"")))
    assert read is not None
    assert read.files == {}
    assert read.left_out_count == 1
    assert read.left_out[0].isprintable()


@given(
    st.lists(
        st.tuples(
            st.sampled_from([FILE, LEFT_OUT, EXITED, MEMORY, b"?"]),
            st.binary(max_size=8),
            st.integers(-(2**63), 2**63 - 1) | st.integers(0, 4),
            st.binary(max_size=4),
        )
    ),
    st.binary(max_size=40),
)
def test_a_report_is_read_or_not_but_never_believed_too_much(
    records: list[tuple[bytes, bytes, int, bytes]], more: bytes
) -> None:
    for data in (report(*records), report(*records) + more, more):
        if (read := read_report(data)) is not None:
            check_files(read.files, Limits()) if len(read.files) < 2 else None
            assert read.left_out_count >= 0
            assert sum(map(len, read.files.values())) <= len(data)


def test_a_request_is_a_report_of_files() -> None:
    assert request({"a": b"b"}) == report((FILE, b"a", 1, b"b"), (b".", b"", 0, b""))
