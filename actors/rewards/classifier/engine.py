"""The engine of classification models: the parent of the process that the model runs in. Nothing here needs torch."""

from __future__ import annotations

import itertools
import logging
import math
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import anyio
import msgspec
from anyio.abc import Process, UNIXSocketStream
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from ....bus.lifeline import launch_command
from ....bus.processes import foreign_environment, stop_process
from ....schemas import AylluError, EngineDead, EngineError, encode
from ....schemas.errors import error_from
from ....schemas.tasks import background_tasks
from ...prompts import chat_message
from ...training.environment import torch_environment
from ...training.protocol import BaseModel
from ...training.settings import require_packages
from ..engine import Answer, Score
from .protocol import (
    Failed,
    Forget,
    FromChild,
    Load,
    Ready,
    Refused,
    Said,
    Scored,
    ToChild,
    Wanted,
    from_child,
)

log = logging.getLogger(__name__)

CHILD = "ayllu.actors.rewards.classifier.child"
MAX_MESSAGE = 1 << 16
LOAD_SECONDS = 1800.0
"""How long a model may take to load."""
SILENT_SECONDS = 1800.0
"""How long a process that has work may tell nothing, before it is taken for hanging: a batch of a large model takes long on a CPU."""
END_SECONDS = 2.0
"""How long a process that hung up may take to be gone."""

Found = tuple[int, Score | AylluError]


class ClassifierEngine:
    """Scores answers with a sequence classification model of one output: any of Hugging Face's, as safetensors.

    The model runs in a process of its own, which dies with this one. When it dies before, whoever waits for a score gets
    `EngineDead`, and so does the block ``async with engine:``, which is cancelled: a supervisor starts it anew, whether or not
    anybody asked for a score.

    Args:
        weights: the model's folder, or that of an adapter with its head.
        batch_size: answers that go through the model at once, at most.
        device: ``cpu``, ``cuda``, or ``cuda:0``.
        max_length: tokens of the longest dialog with its answer; 0 is the model's context.
        description: what its scores mean, for people; by default what is true of any.
        base: what an adapter was trained on, and is merged into when it is loaded.
        lowest: the least score there is.
        highest: the largest one.
    """

    name = "classifier"

    def __init__(
        self,
        weights: Path,
        *,
        batch_size: int = 16,
        device: str = "cpu",
        max_length: int = 0,
        description: str = "",
        base: BaseModel | None = None,
        lowest: float | None = None,
        highest: float | None = None,
    ) -> None:
        self.description = description or "the larger the better; the scores have no fixed range"
        self.lowest = lowest
        self.highest = highest
        self.context = max_length
        # A device of several is chosen by what the process may see; there it is the only one.
        kind = device.partition(":")[0]
        self._load = Load(str(weights), base, kind, batch_size, max_length)
        self._device = device
        self._stack = AsyncExitStack()
        self._calls: dict[int, MemoryObjectSendStream[Found]] = {}
        self._numbers = itertools.count()
        self._outbox: MemoryObjectSendStream[ToChild]
        self._process: Process
        self._death: str | None = None
        # The last time that something was told, or that work came to an idle process.
        self._busy_since = 0.0

    @property
    def pid(self) -> int:
        """The process that the model runs in."""
        return self._process.pid

    async def __aenter__(self) -> ClassifierEngine:
        """Load the model, and return once it is; cancelling ends that.

        Raises:
            Unsupported: packages are missing, or the model needs something that is not taken.
            InvalidRequest: the folder has no such model, is damaged, or may hold code.
            EngineError: it cannot be loaded.
        """
        require_packages()
        async with AsyncExitStack() as stack:
            connection = await self._start(stack)
            tasks = await stack.enter_async_context(background_tasks())
            # It holds no more than what was asked.
            self._outbox, unsent = anyio.create_memory_object_stream[ToChild](math.inf)
            stack.callback(self._outbox.close)
            tasks.start_soon(self._send, connection, unsent)
            self._say(self._load)
            lines = BufferedByteReceiveStream(connection)
            with anyio.move_on_after(LOAD_SECONDS) as loading:
                self._check_loaded(await self._receive(lines))
            if loading.cancelled_caught:
                raise EngineError(f"the reward model was not loaded within {LOAD_SECONDS:g} s")
            tasks.start_soon(self._hear, lines)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        """End the process; what is being scored ends with `EngineDead`.

        Raises:
            EngineDead: it had died.
        """
        self._die("the reward model was closed")
        await self._stack.__aexit__(*exc)

    async def _start(self, stack: AsyncExitStack) -> UNIXSocketStream:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            connection = await UNIXSocketStream.from_socket(ours)
            await stack.enter_async_context(connection)
            fd = theirs.fileno()
            command = [sys.executable, "-P", "-m", CHILD, str(fd)]
            self._process = await anyio.open_process(
                launch_command(command, keep_fds=[fd]),
                stdin=subprocess.PIPE,
                # What libraries print is for the log; the worker's own output tells whoever started it that it is ready.
                stdout=2,
                stderr=None,
                env=torch_environment(self._device, foreign_environment()),
                pass_fds=[fd],
                start_new_session=True,
            )
        stack.push_async_callback(stop_process, self._process, patience=0)
        return connection

    def _check_loaded(self, told: FromChild | None) -> None:
        if isinstance(told, Failed):
            raise error_from(told.error)
        if not isinstance(told, Ready):
            raise EngineError(
                "the process of the reward model died while it loaded; the worker's log says more"
            )
        self.context = told.context

    def score(self, answers: Sequence[Answer]) -> AsyncGenerator[Found, None]:
        """Score answers; see `RewardEngine.score`."""
        return self._scored(answers)

    async def _scored(self, answers: Sequence[Answer]) -> AsyncGenerator[Found, None]:
        self._check_alive()
        call = next(self._numbers)
        send, receive = anyio.create_memory_object_stream[Found](math.inf)
        if not self._calls:
            self._busy_since = anyio.current_time()
        self._calls[call] = send
        left = len(answers)
        try:
            for index, answer in enumerate(answers):
                try:
                    wanted = Wanted(call, index, _messages(answer))
                except AylluError as error:
                    send.send_nowait((index, error))
                else:
                    self._say(wanted)
            while left:
                try:
                    found = await receive.receive()
                except anyio.EndOfStream:
                    self._check_alive()
                    raise
                yield found
                left -= 1
        finally:
            self._calls.pop(call, None)
            send.close()
            receive.close()
            if left:
                self._say(Forget(call))

    def _say(self, message: ToChild) -> None:
        # What is said to a process that died is lost; `_hear` tells everybody of its death.
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            self._outbox.send_nowait(message)

    def _check_alive(self) -> None:
        if self._death is not None:
            raise EngineDead(self._death)

    def _die(self, why: str) -> None:
        self._death = self._death or why
        for waiting in self._calls.values():
            waiting.close()

    async def _send(
        self, connection: UNIXSocketStream, messages: MemoryObjectReceiveStream[ToChild]
    ) -> None:
        """Write what is to be said: in a task of its own, so that no cancel leaves half a line."""
        async with messages:
            async for message in messages:
                if isinstance(message, Wanted) and message.call not in self._calls:
                    continue  # Its caller has left.
                try:
                    await connection.send(encode(message) + b"\n")
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                    return  # `_hear` says so to all.

    async def _receive(self, lines: BufferedByteReceiveStream) -> FromChild | None:
        try:
            return from_child.decode(await lines.receive_until(b"\n", MAX_MESSAGE))
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
            return None
        except (anyio.DelimiterNotFound, msgspec.DecodeError):
            log.exception("the process of a reward model talks nonsense")
            return None

    async def _told(self, lines: BufferedByteReceiveStream) -> FromChild | None:
        """Return what is told next; None if that is nothing, because the process has ended or hangs over its work."""
        while True:
            with anyio.move_on_after(SILENT_SECONDS):
                told = await self._receive(lines)
                self._busy_since = anyio.current_time()
                return told
            if self._calls and anyio.current_time() >= self._busy_since + SILENT_SECONDS:
                log.error("the process of the reward model %s hangs", self._load.weights)
                return None

    async def _hear(self, lines: BufferedByteReceiveStream) -> None:
        """Hand on what is told, to the end of the process.

        Raises:
            EngineDead: it has come to its end.
        """
        while (told := await self._told(lines)) is not None:
            if isinstance(told, Scored | Refused) and (waiting := self._calls.get(told.call)):
                waiting.send_nowait((told.index, _outcome(told)))
        with anyio.move_on_after(END_SECONDS):
            await self._process.wait()
        await stop_process(self._process, patience=0)
        status = self._process.returncode
        log.error("the process of the reward model %s ended: %s", self._load.weights, status)
        self._die("the process of the reward model died")
        self._check_alive()


def _messages(answer: Answer) -> list[Said]:
    history = answer.dialog.message_history or ()
    said = [*history, answer.dialog.message, answer.message]
    places = [f"dialog.message_history[{number}]" for number in range(len(history))]
    made = [
        chat_message(message, "of rewards", where)
        for message, where in zip(said, [*places, "dialog.message", "answer"], strict=True)
    ]
    return [Said(message.role, message.text) for message in made]


def _outcome(told: Scored | Refused) -> Score | AylluError:
    return Score(told.score) if isinstance(told, Scored) else error_from(told.error)
