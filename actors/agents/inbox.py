"""The inbox of an agent: what anybody on the bus publishes there is a turn; durable, in order, and known by its message id.

JetStream stores the message under the publisher's ``Nats-Msg-Id`` (one that comes again within two minutes is stored once),
and executors take it from there as they take commands: so it may come while nothing of ayllu runs. Under the same id it is the
same turn as long as that is kept.
"""

from __future__ import annotations

import logging

import anyio
import msgspec
from anyio.abc import TaskStatus

from ...bus.bus import Bus
from ...bus.claims import Claims
from ...bus.deadletters import bury
from ...bus.durable import Delivery, Entry, WorkQueue
from ...schemas import (
    AgenticSystemExecuteRequest,
    AylluError,
    InvalidRequest,
    Message,
    WhenBusy,
    decode,
)
from ...schemas.delegation import MAX_NAME
from .asking import Start, wake
from .ending import answerable
from .entries import CLAIM_PREFIX, read_command, turn_of
from .records import Command, Execute
from .requests import check_messages, execute_of
from .streams import AGENTS, INBOXES, agent_of, journal_subject, lane_of_command

log = logging.getLogger(__name__)

CONSUMER = "inboxes"
BATCH = 256
FETCH_SECONDS = 5.0
RETRY_SECONDS = 1.0


def is_inbox(subject: str) -> bool:
    """Tell whether entries of a subject come from outside."""
    return subject.endswith(".inbox")


def agent_of_inbox(subject: str) -> str:
    """Return the agent that an inbox is of.

    Raises:
        ValueError: no agent can have such a name.
    """
    name = lane_of_command(subject)
    if agent_of(name) != name:
        raise ValueError(f"no agent's name is {name!r}")
    return name


async def read_entry(claims: Claims, entry: Entry) -> Command:
    """Read what is asked of an agent: a command, or a message to its inbox.

    Raises:
        InvalidRequest: it is neither.
    """
    return read_message(entry) if is_inbox(entry.subject) else await read_command(claims, entry)


def read_message(entry: Entry) -> Execute:
    """Read a message of an inbox: a `Message`, or a whole `AgenticSystemExecuteRequest`.

    Raises:
        InvalidRequest: it is neither, or wants its answer where none is sent.
    """
    if entry.reply_to and not answerable(entry.reply_to):
        raise InvalidRequest(f"no answer can be sent to {entry.reply_to[:100]!r}")
    agent = lane_of_command(entry.subject)
    request = _request(agent, entry.payload)
    if request.agent_uuid != agent:
        raise InvalidRequest(f"it is for the agent {request.agent_uuid!r}, not for {agent!r}")
    if request.detached:
        raise InvalidRequest("detached: a message to an inbox waits for those before it")
    if request.when_busy is not WhenBusy.queue:
        raise InvalidRequest("when_busy: a message to an inbox waits for those before it (`queue`)")
    check_messages(request)
    turn = request.turn_id or entry.msg_id or f"inbox-{entry.sequence}"
    if len(turn) > MAX_NAME:
        raise InvalidRequest(f"an id of a message has at most {MAX_NAME} characters")
    command = execute_of(request, turn)
    journal_subject(agent, turn_of(entry, command))  # Else it could not be taken.
    expires = entry.at + request.expires_in if request.expires_in is not None else 0.0
    return msgspec.structs.replace(command, reply=entry.reply_to, expires=expires)


def _request(agent: str, payload: bytes) -> AgenticSystemExecuteRequest:
    if payload.startswith(CLAIM_PREFIX):
        raise InvalidRequest("it is neither a message nor a request")
    try:
        message = decode(payload, Message)
    except InvalidRequest as error:
        try:
            return decode(payload, AgenticSystemExecuteRequest)
        except InvalidRequest as other:
            wanted = other if b"agent_uuid" in payload else error
            raise InvalidRequest(f"it is no message: {wanted.message}") from error
    return AgenticSystemExecuteRequest(agent, [message])


class Postman:
    """Wakes executors for what comes into inboxes; several share the work.

    Args:
        bus: the bus.
        start: lets an executor of this process begin.
    """

    def __init__(self, bus: Bus, start: Start) -> None:
        self._bus = bus
        self._start = start

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled; started means ready."""
        queue = await self._bus.storage.streams.work(AGENTS.name, CONSUMER, subject=INBOXES)
        task_status.started()
        while True:
            try:
                await self._round(queue)
            except AylluError as error:
                log.warning("inboxes cannot be read: %s", error)
                await anyio.sleep(RETRY_SECONDS)

    async def _round(self, queue: WorkQueue) -> None:
        """Wake each agent once for all that has come for it."""
        last: dict[str, list[Delivery]] = {}
        for delivery in await queue.fetch(BATCH, wait=FETCH_SECONDS):
            try:
                agent = agent_of_inbox(delivery.entry.subject)
            except ValueError as error:
                await self._bury(delivery, f"its subject is nobody's inbox: {error}")
                continue
            last.setdefault(agent, []).append(delivery)
        for agent, deliveries in last.items():
            msg_id = f"inbox {deliveries[-1].entry.sequence}"
            try:
                await wake(self._bus, agent, msg_id, self._start)
            except AylluError as error:
                log.warning("nobody could be woken for %r, which is tried again: %s", agent, error)
                for delivery in deliveries:
                    await delivery.nak(RETRY_SECONDS)
                continue
            for delivery in deliveries:
                await delivery.ack()

    async def _bury(self, delivery: Delivery, reason: str) -> None:
        """Make a dead letter of what no executor will look at."""
        entry = delivery.entry
        log.warning("what came to %.100s was buried: %s", entry.subject, reason)
        await bury(self._bus.storage, entry, reason=reason, attempts=1)
        before = entry.sequence + 1
        await self._bus.storage.streams.purge(AGENTS.name, entry.subject, before=before)
        await delivery.term()
