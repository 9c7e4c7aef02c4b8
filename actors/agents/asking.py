"""Asking something of an agent: a command is stored, and an executor hears of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from ...bus.bus import Bus
from ...bus.claims import Claims
from ...schemas import AylluError
from .entries import packed
from .records import Command
from .streams import command_subject, signal_subject, wake_subject

Start = Callable[[str], Awaitable[bool]]
"""Lets an executor of this process begin in a lane, and returns whether it does."""


async def ask(
    bus: Bus,
    claims: Claims,
    lane: str,
    command: Command,
    msg_id: str,
    *,
    expires: float | None = None,
    idle: bool = False,
    start: Start | None = None,
) -> bool:
    """Store a command and wake an executor; it is done, whatever dies, once this has returned.

    Args:
        bus: the bus.
        claims: keeps large commands.
        lane: where it is asked; see `lane_of`.
        command: what is asked.
        msg_id: the same for each try.
        expires: seconds after which a turn is not begun any more.
        idle: only if nothing else is asked there.
        start: an executor that may begin at once.

    Returns:
        whether that executor has begun.

    Raises:
        Conflict: something else is asked there.
    """
    await bus.storage.streams.append(
        command_subject(lane),
        await packed(claims, command),
        msg_id=msg_id,
        expires=expires,
        expected_last=0 if idle else None,
    )
    return await wake(bus, lane, msg_id, start)


async def wake(bus: Bus, lane: str, msg_id: str, start: Start | None = None) -> bool:
    """Tell executors that there is something to do in a lane; see `ask`."""
    begun = False

    async def begin() -> None:
        nonlocal begun
        begun = start is not None and await start(lane)
        if not begun:
            # One that works there in another process looks for what there is to do.
            await bus.transport.publish(signal_subject(lane), b"")

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(begin)
            await bus.storage.streams.append(wake_subject(lane), b"", msg_id=f"wake {msg_id}")
    except* AylluError as group:
        raise group.exceptions[0] from None
    return begun
