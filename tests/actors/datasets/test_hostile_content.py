"""Files that are not what their addresses promise, and servers that send something else than a table."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import pytest

from ayllu.actors.datasets.content import ContentStore
from ayllu.actors.datasets.settings import DatasetsConfig
from ayllu.schemas import (
    AylluError,
    Conflict,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    TooLarge,
)

pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("dataset-hostile-files")]

ROWS = b'{"text": "a"}\n'


class Place:
    """A root with a file in it, a file outside of it, and a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.root.mkdir()
        self.inside = self.root / "inside.jsonl"
        self.inside.write_bytes(ROWS)
        self.outside = folder / "outside.jsonl"
        self.outside.write_bytes(ROWS)
        self.copies = folder / "copies"
        self.store = ContentStore(
            self.copies, DatasetsConfig(roots=[str(self.root)], max_bytes=1000)
        )

    async def refusal(self, url: str) -> AylluError:
        """Return what is said about an address, which must be the same at once and when it is read."""
        with anyio.fail_after(10):
            with pytest.raises(AylluError) as fetched:
                await self.store.fetch(url)
        assert str(self.folder) not in fetched.value.message
        assert not list(self.copies.glob("*")), "something is left"
        return fetched.value


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def test_a_copy_does_not_change(place: Place) -> None:
    first = await place.store.fetch(f"file://{place.inside}")
    place.inside.write_bytes(ROWS * 2)
    second = await place.store.fetch(f"file://localhost{place.inside}")
    assert first.path.read_bytes() == ROWS
    assert first.fingerprint == f"sha256:{hashlib.sha256(ROWS).hexdigest()}"
    assert (second.bytes, second.format) == (2 * len(ROWS), "jsonl")
    assert len(list(place.copies.iterdir())) == 2
    again = await place.store.fetch(f"file://{place.root}/../root/%69nside.jsonl")
    assert again == second
    assert len(list(place.copies.iterdir())) == 2


async def test_what_leads_out_of_the_roots(place: Place) -> None:
    (place.root / "link.jsonl").symlink_to(place.outside)
    (place.root / "folder").symlink_to(place.folder)
    (place.root / "loop.jsonl").symlink_to(place.root / "loop.jsonl")
    (place.folder / "root2").mkdir()
    (place.folder / "root2" / "x.jsonl").write_bytes(ROWS)
    for path in (
        place.outside,
        place.root / "link.jsonl",
        place.root / "folder" / "outside.jsonl",
        place.root / ".." / "outside.jsonl",
        f"{place.root}/%2e%2e/outside.jsonl",
        f"{place.root}%2F..%2Foutside.jsonl",
        place.folder / "root2" / "x.jsonl",  # Only the name begins alike.
        place.folder / "missing.jsonl",  # Whether it is there is not told.
        "/etc/passwd",
    ):
        error = await place.refusal(f"file://{path}")
        assert type(error) is PermissionDenied, path
    assert isinstance(
        await place.refusal(f"file://{place.root}/loop.jsonl"), InvalidRequest | NotFound
    )


async def test_a_link_inside_of_the_roots_is_followed(place: Place) -> None:
    (place.root / "link.jsonl").symlink_to(place.inside)
    assert (await place.store.fetch(f"file://{place.root}/link.jsonl")).bytes == len(ROWS)


async def test_what_is_no_file(place: Place) -> None:
    os.mkfifo(place.root / "pipe.jsonl")  # Nobody ever writes: to open it would wait.
    (place.root / "folder.jsonl").mkdir()
    for name in ("pipe.jsonl", "folder.jsonl"):
        assert type(await place.refusal(f"file://{place.root}/{name}")) is InvalidRequest
        with pytest.raises(InvalidRequest):
            place.store.check(f"file://{place.root}/{name}")
    for name in ("missing.jsonl", "x" * 300 + ".jsonl", "inside.jsonl/x.jsonl"):
        assert type(await place.refusal(f"file://{place.root}/{name}")) is NotFound
        with pytest.raises(NotFound):
            place.store.check(f"file://{place.root}/{name}")


@pytest.mark.parametrize(
    "url",
    [
        "file:", "file://", "file://[/x.jsonl", "file://host/x.jsonl", "file:x.jsonl", "file:///x%00.jsonl",
        "file:///x.jsonl?y", "file:///x.jsonl#y", "http://", "ftp://h/x.jsonl", "x.jsonl", "",
        "data:application/jsonl", "data:application/jsonl,%zz", "data:application/jsonl;base64,@", "data:,x",
        "data:text/html,x", "data:",
    ],
)  # fmt: skip
async def test_what_is_no_address_of_content(place: Place, url: str) -> None:
    assert isinstance(await place.refusal(url), InvalidRequest)


async def test_what_is_too_large(place: Place) -> None:
    place.inside.write_bytes(b"x" * 1001)
    assert type(await place.refusal(f"file://{place.inside}")) is TooLarge
    assert type(await place.refusal("data:application/jsonl," + "x" * 1001)) is TooLarge


async def test_without_roots_there_are_no_files(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.store = ContentStore(place.copies, DatasetsConfig())
    assert type(await place.refusal(f"file://{place.inside}")) is PermissionDenied


@asynccontextmanager
async def answering(head: bytes) -> AsyncIterator[str]:
    """Run a server that answers everything with a head and one row."""

    async def handle(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n%b\r\n%b" % (head, ROWS))

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        yield f"127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("name", "media_type", "format_"),
    [
        ("x.jsonl", "", "jsonl"),
        ("x.jsonl", "text/plain; charset=utf-8", "jsonl"),
        ("x.csv?y", "application/octet-stream", "csv"),
        ("x", "application/x-ndjson", "jsonl"),
        ("x.jsonl", "text/html", None),  # A page of login, most likely.
        ("x.jsonl", "image/png", None),
        ("x", "text/plain", None),
        ("x", "", None),
    ],
)
async def test_what_a_server_says_it_is(
    tmp_path: Path, name: str, media_type: str, format_: str | None
) -> None:
    head = f"Content-Type: {media_type}\r\n".encode() if media_type else b""
    with anyio.fail_after(10):
        async with answering(head) as host:
            place = Place(tmp_path)
            place.store = ContentStore(place.copies, DatasetsConfig(private_hosts=[host]))
            if format_ is None:
                assert isinstance(await place.refusal(f"http://{host}/{name}"), InvalidRequest)
            else:
                content = await place.store.fetch(f"http://{host}/{name}")
                assert (content.format, content.path.read_bytes()) == (format_, ROWS)


async def test_a_file_that_changes_while_it_is_read_is_noticed(place: Place) -> None:
    url = place.inside.as_uri()
    with pytest.raises(Conflict) as found:
        async with place.store.reading(url) as content:
            assert content.path == place.inside
            place.inside.write_bytes(ROWS * 2)
    assert found.value.retryable
    assert await place.store.fingerprint(url) == f"sha256:{hashlib.sha256(ROWS * 2).hexdigest()}"


async def test_a_file_is_read_for_a_bounded_time(place: Place) -> None:
    place.inside.write_bytes(b"x" * (8 << 20))
    place.store = ContentStore(
        place.copies, DatasetsConfig(roots=[str(place.root)], timeout=0.000001)
    )
    assert type(await place.refusal(place.inside.as_uri())) is DeadlineExceeded


FULL = """
import resource, sys, anyio
from pathlib import Path
from ayllu.actors.datasets.content import ContentStore
from ayllu.actors.datasets.settings import DatasetsConfig
from ayllu.schemas import Overloaded

root, copies = map(Path, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    anyio.run(ContentStore(copies, DatasetsConfig(roots=[str(root)])).fetch, f"file://{root}/x.jsonl")
except Overloaded as error:
    assert error.retryable and str(copies) not in error.message
    print("full", list(copies.iterdir()))
"""


async def test_a_disk_without_room_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    # A process that may not write more is told so at the same place.
    root = tmp_path / "root"
    root.mkdir()
    (root / "x.jsonl").write_bytes(ROWS * 200_000)
    command = [sys.executable, "-c", FULL, str(root), str(tmp_path / "copies")]
    done = await anyio.run_process(command, check=False)
    assert done.stdout.decode() == "full []\n", done.stderr.decode()
