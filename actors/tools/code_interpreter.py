"""``code_interpreter``: Python in the sandbox, for what models want to compute.

A session needs no process that waits. Where a cell wants the state of those before it, they are run again, from what the turn's
journal knows of them; so it survives the death of everything, on any worker.
"""

from __future__ import annotations

import base64
import json
import math
import mimetypes
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio

from ...schemas import (
    Attachment,
    AylluError,
    Content,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    TooLarge,
    ToolRequest,
)
from ..sandbox import Limits, Outcome, run_python
from . import cell_runner
from .settings import CodeInterpreterSettings

MAX_CODE = 100_000
"""Characters of a cell. It does not stand in the schema: no grammar that forces a call counts so far."""
MAX_FILES = 10
MAX_FILE_BYTES = 4 << 20
"""What comes back of the files that a cell left, all together."""
MAX_NAME = 100
"""Characters of a path that are told."""
TOLD = 1200
"""Characters of a cell's output that an error quotes."""
START_SECONDS = 45.0
"""How long a sandbox may take to start and to end, on a machine that has much else to do."""

_PROGRAM = Path(cell_runner.__file__).read_text(encoding="utf-8")
_TYPES = mimetypes.MimeTypes()
"""Python's own table: what the machine knows beside it differs from one to the next."""


class CodeInterpreter:
    """A `Tool` that runs Python.

    Args:
        settings: what code may use.
    """

    name = "code_interpreter"
    description = (
        "Run Python code in a sandbox and read what it prints; the value of the last expression is shown too. "
        "It has Python's standard library only: no packages such as numpy, pandas or matplotlib, no network, no files but those "
        "that it writes. Files and pictures that it writes to its working directory are returned. Each call starts anew, "
        "unless keep_state is true."
    )
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {
            "code": {
                "type": "string",
                "minLength": 1,
                "description": "The Python code.",
            },
            "keep_state": {
                "type": "boolean",
                "default": False,
                "description": "Whether it goes on from the earlier calls with keep_state: their variables, imports and files "
                "are there.",
            },
        },
        "required": ["code"],
        "additionalProperties": False,
    }
    idempotent = True

    def __init__(self, settings: CodeInterpreterSettings) -> None:
        output = settings.output_kib << 10
        self._limits = Limits(
            seconds=settings.seconds,
            cpu_seconds=math.ceil(settings.seconds),
            memory_bytes=settings.memory_mib << 20,
            output_bytes=output,
            disk_bytes=settings.disk_mib << 20,
            file_bytes=MAX_FILE_BYTES,
        )
        self._slots = anyio.CapacityLimiter(settings.at_once)
        self._patience = settings.seconds
        self.seconds = 2 * settings.seconds + START_SECONDS
        # What is no UTF-8 becomes three bytes; the rest is for our own words.
        self.max_output = 2 * 3 * output + (16 << 10)

    async def run(self, request: ToolRequest) -> Content:
        """Run a cell; see `Tool.run`.

        Raises:
            TooLarge: there is too much code.
            Overloaded: too much other code runs.
            InvalidRequest: it wants its state to be kept, and did not come to its end, so that nothing can go on from it.
            InternalError: the sandbox did not start.
        """
        session = _Session.of(request)
        if len(session.code) > MAX_CODE:
            raise TooLarge(f"code has at most {MAX_CODE} characters, not {len(session.code)}")
        try:
            with anyio.fail_after(self._patience):
                await self._slots.acquire()
        except TimeoutError as error:
            raise Overloaded("too much other code runs at the moment: try again later") from error
        try:
            outcome = await run_python(_PROGRAM, stdin=session.input, limits=self._limits)
        finally:
            self._slots.release()
        return _answer(session, outcome)


@dataclass(frozen=True, slots=True)
class _Session:
    """A cell, and those that it goes on from.

    Attributes:
        code: of the cell.
        keeps: whether others may go on from it.
        earlier: the code of those before it.
        mark: tells where its output begins, and that it came to its end.
    """

    code: str
    keeps: bool
    earlier: list[str]
    mark: str

    @classmethod
    def of(cls, request: ToolRequest) -> _Session:
        """Return what a call is about."""
        keeps = request.arguments.get("keep_state", False) is True
        # The arguments of the others were checked when they were called, but not by us.
        earlier = [
            code
            for one in request.earlier
            if keeps and one.get("keep_state") is True and isinstance(code := one.get("code"), str)
        ]
        return cls(request.arguments["code"], keeps, earlier, secrets.token_hex(16))

    @property
    def note(self) -> str:
        """The file in which the runner says what files it had found."""
        return cell_runner.KEPT_PREFIX + self.mark

    @property
    def input(self) -> bytes:
        """What the runner is told."""
        # The same in each call of a session, and not the same in all sessions.
        first = (self.earlier or [self.code])[0].encode(errors="replace")
        return json.dumps(
            {
                "code": self.code,
                "earlier": self.earlier,
                "mark": self.mark,
                "seed": sha256(first).hexdigest() if self.keeps else None,
            }
        ).encode()


def _answer(session: _Session, outcome: Outcome) -> Content:
    """Return what the model is told.

    Raises:
        AylluError: the cell wants its state to be kept, and there is none.
    """
    _, began, said = outcome.stdout.partition(session.mark)
    said, came_to_end, later = said.partition(session.mark)
    stdout = (said + later).rstrip("\n")
    stderr = outcome.stderr.rstrip("\n")
    if session.keeps and not came_to_end:
        raise _lost(outcome, bool(began), stdout, stderr)
    lines = [stdout] if stdout else []
    if stderr:
        lines.append(f"[stderr]\n{stderr}")
    files = _new_files(session, outcome)
    returned = dict(list(files.items())[:MAX_FILES])
    attachments = [_attachment(name, content) for name, content in returned.items()]
    lines = lines or ["[nothing was printed]"]
    lines.append(f"[{_end(outcome)}]")
    if returned:
        told = (
            f"{_short(name)} ({one.mime_type}, {len(content)} bytes)"
            for (name, content), one in zip(returned.items(), attachments, strict=True)
        )
        lines.append(f"[files: {', '.join(told)}]")
    left_out = [name for name in files if name not in returned]
    count = len(left_out) + outcome.left_out_count - (session.note in outcome.left_out)
    left_out += [name for name in outcome.left_out if name != session.note]
    if count:
        names = ", ".join(map(_short, left_out[:MAX_FILES]))
        more = ", ..." if count > MAX_FILES else ""
        lines.append(
            f"[{count} of the files that it left are not returned, because they are too many, too large, or no plain files: "
            f"{names}{more}]"
        )
    text = "\n".join(lines)
    return [text, *attachments] if attachments else text


def _end(outcome: Outcome) -> str:
    """Return how a cell ended, without what `Outcome.summary` says of files."""
    return outcome.summary.partition("; ")[0]


def _lost(outcome: Outcome, began: bool, stdout: str, stderr: str) -> AylluError:
    """Return the error that says that nothing can go on from a cell."""
    if not began:
        text = f"the earlier calls with keep_state were run again, and {_end(outcome)}"
        text += ": this call did not begin. Call without keep_state, with all of the code that is needed"
    else:
        text = f"{_end(outcome)}; nothing of this call is kept for later ones"
    for what, said in (("printed", stdout), ("wrote to standard error", stderr)):
        if said:
            cut = said if len(said) <= TOLD // 2 else f"... {said[-TOLD // 2 :]}"
            text += f". It {what}: {cut}"
    # Another try would take as long and end the same.
    if outcome.how in ("timeout", "cpu"):
        return DeadlineExceeded(text, retryable=False)
    return TooLarge(text) if outcome.how in ("memory", "disk", "output") else InvalidRequest(text)


def _new_files(session: _Session, outcome: Outcome) -> dict[str, bytes]:
    """Return the files that the last cell wrote or changed, in the order of their names."""
    files = dict(sorted(outcome.files.items()))
    told = files.pop(session.note, b"{}")
    try:
        known = json.loads(told)
        kept = {path: digest for path, digest in known.items() if isinstance(digest, str)}
    except (ValueError, AttributeError, RecursionError):
        kept = {}
    return {
        name: content
        for name, content in files.items()
        if kept.get(name) != sha256(content).hexdigest()
    }


def _attachment(name: str, content: bytes) -> Attachment:
    mime_type = _TYPES.guess_type(Path(name).name)[0]
    if mime_type is None:
        mime_type = "text/plain" if _is_text(content) else "application/octet-stream"
    data = base64.b64encode(content).decode()
    return Attachment(f"data:{mime_type};base64,{data}", mime_type)


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in content


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}..."
