"""``ayllu dlq``: what could not be handled, from the command line. It talks to the bus itself: there may be no gateway."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

import anyio
import msgspec

from ..actors.agents.streams import wake_subject
from ..bus.bus import connect
from ..bus.deadletters import DeadLetter, letters, remove, replay
from ..bus.durable import Storage
from ..bus.subjects import ROOT, decode_token
from ..schemas import BusError, InvalidRequest, NotFound, encode

CONNECT_SECONDS, ACT_SECONDS = 3.0, 60.0


async def run(bus_url: str | None, data_dir: Path, options: argparse.Namespace) -> None:
    """Do what ``ayllu dlq`` was asked for.

    Args:
        bus_url: the bus; None for that of ``ayllu up`` in the data directory.
        data_dir: where ``ayllu up`` keeps its data.
        options: the action and its options.

    Raises:
        InvalidRequest: there is no bus to look at.
        NotFound: there is no such letter.
        BusError: the bus does not answer.
    """
    url = bus_url or bus_of(data_dir)
    try:
        with anyio.fail_after(CONNECT_SECONDS) as scope:
            async with connect(url, name="ayllu dlq") as bus:
                scope.deadline = anyio.current_time() + ACT_SECONDS
                await _act(bus.storage, options)
    except TimeoutError as error:
        raise BusError(
            "the bus does not answer; are the nats-server and the address right?"
        ) from error


def bus_of(data_dir: Path) -> str:
    """Return the bus of the ``ayllu up`` in a data directory.

    Raises:
        InvalidRequest: none has run there.
    """
    try:
        return (data_dir / "bus.url").read_text(encoding="utf-8").strip()
    except OSError as error:
        raise InvalidRequest(
            f"which bus? No `ayllu up` has run in {data_dir}; give --bus or --data-dir"
        ) from error


async def _act(storage: Storage, options: argparse.Namespace) -> None:
    match options.action:
        case "list":
            for letter in await letters(storage):
                sys.stdout.write(encode(letter).decode() if options.json else _line_of(letter))
                sys.stdout.write("\n")
        case "show":
            letter = await _one(storage, options.letter)
            sys.stdout.write(msgspec.json.format(encode(_readable(letter)), indent=2).decode())
            sys.stdout.write("\n")
        case "replay":
            letter = await _one(storage, options.letter)
            await replay(storage, letter.id)
            await _wake(storage, letter)
        case _:
            await remove(storage, options.letter)


async def _one(storage: Storage, id_: str) -> DeadLetter:
    for letter in await letters(storage):
        if letter.id == id_:
            return letter
    raise NotFound(f"there is no dead letter {id_!r}")


def _line_of(letter: DeadLetter) -> str:
    buried = datetime.fromtimestamp(letter.buried, UTC).isoformat(timespec="seconds")
    return f"{letter.id}\t{buried}\t{letter.attempts}\t{letter.subject}\t{letter.reason}"


def _readable(letter: DeadLetter) -> dict[str, object]:
    """Return a letter for people: its time as such, its payload as JSON or text where it is."""
    found: dict[str, object] = msgspec.to_builtins(letter)
    found["buried"] = datetime.fromtimestamp(letter.buried, UTC)
    if letter.payload:
        try:
            found["payload"] = msgspec.json.decode(letter.payload)
        except (msgspec.DecodeError, UnicodeDecodeError):
            found["payload"] = letter.payload.decode(errors="backslashreplace")
    return found


async def _wake(storage: Storage, letter: DeadLetter) -> None:
    """Wake an executor where the letter was a command to an agent, which waits until somebody looks."""
    before, _, last = letter.subject.rpartition(".")
    before, _, token = before.rpartition(".")
    if (before, last) == (f"{ROOT}.agent", "command"):
        subject = wake_subject(decode_token(token))
        await storage.streams.append(
            subject, b"", msg_id=f"wake replay:{letter.id}:{letter.buried!r}"
        )
