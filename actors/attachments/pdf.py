"""The text of PDF documents. What reads them is a large library, and what they hold may mean ill: it runs in the sandbox."""

from __future__ import annotations

import importlib.util
import io
import zipfile
from functools import cache
from pathlib import Path

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from ...schemas import InternalError, InvalidRequest, TooLarge, Unavailable, Unsupported
from ..sandbox.outcome import Limits, Outcome
from ..sandbox.running import run_python

MAX_PAGES = 500
MAX_CHARACTERS = 2_000_000
SECONDS = 20.0
"""How long reading one may take."""
MEMORY = 384 << 20
AT_ONCE = 2
"""How many documents are read at once, of all requests."""
_PLACES = RunVar[anyio.Semaphore]("_PLACES")
_ROOM = 48 << 20
"""What the library, and the text, may take of the sandbox's disk beside the document."""
_LOCKED, _BROKEN, _LONG = 3, 4, 5
_CODE = f"""
import logging, sys, warnings
sys.path.insert(0, "pypdf.zip")
import pypdf
logging.disable()
warnings.simplefilter("ignore")
texts, length = [], 0
try:
    reader = pypdf.PdfReader("document.pdf")
    if reader.is_encrypted and not reader.decrypt(""):
        sys.exit({_LOCKED})
    for number, page in enumerate(reader.pages):
        text = page.extract_text().strip()
        length += len(text)
        if number >= {MAX_PAGES} or length > {MAX_CHARACTERS}:
            sys.exit({_LONG})
        if text:
            texts.append(text)
except Exception as error:
    sys.exit({_BROKEN})
with open("text", "w", encoding="utf-8", errors="replace") as file:
    file.write("\\n\\n".join(texts))
"""


async def pdf_text(data: bytes, seconds: float = SECONDS) -> str:
    """Return the text of a PDF document, its pages with an empty line between them.

    Args:
        data: the document.
        seconds: how long that may take.

    Raises:
        InvalidRequest: it cannot be read, or is locked, or there is no text in it.
        TooLarge: it has too many pages or too much text, or reading it takes too much of anything.
        Unavailable: there was no time for it.
        Unsupported: the library is not installed, or there is no sandbox here.
    """
    if not data.startswith(b"%PDF-"):
        raise InvalidRequest("it is not a PDF document")
    until = anyio.current_time() + seconds
    try:
        with anyio.fail_after(seconds):
            await _places().acquire()
    except TimeoutError as error:
        raise Unavailable("there was no time left to read it") from error
    try:
        return await _read(data, until - anyio.current_time())
    finally:
        _places().release()


def _places() -> anyio.Semaphore:
    """Return the places of all requests: each reader may take much memory."""
    try:
        return _PLACES.get()
    except LookupError:
        _PLACES.set(anyio.Semaphore(AT_ONCE))
        return _PLACES.get()


async def _read(data: bytes, seconds: float) -> str:
    limits = Limits(
        seconds=max(0.01, min(seconds, SECONDS)),
        cpu_seconds=int(SECONDS),
        memory_bytes=MEMORY,
        processes=1,
        disk_bytes=len(data) + _ROOM,
        disk_files=8,
        file_bytes=4 * MAX_CHARACTERS + 1024,
    )
    library = await anyio.to_thread.run_sync(_library)
    files = {"pypdf.zip": library, "document.pdf": data}
    try:
        outcome = await run_python(_CODE, files=files, limits=limits)
    except Unsupported as error:
        raise Unsupported("PDF documents are read in a sandbox, and there is none here") from error
    except InternalError as error:
        raise Unavailable("the sandbox that reads PDF documents did not start") from error
    return _text_of(outcome)


def _text_of(outcome: Outcome) -> str:
    if outcome.how not in ("exited", "killed"):
        raise TooLarge(f"it takes too much to read it: {outcome.summary}")
    if outcome.status == _LOCKED:
        raise InvalidRequest("it is locked with a password")
    if outcome.status == _LONG:
        raise TooLarge(f"it has more than {MAX_PAGES} pages, or {MAX_CHARACTERS} characters")
    text = outcome.files.get("text")
    if outcome.status != 0 or text is None:
        raise InvalidRequest("it cannot be read as a PDF document")
    if not text.strip():
        raise InvalidRequest("there is no text in it: its pages may be pictures")
    return text.decode(errors="replace")


@cache
def _library() -> bytes:
    """Return the library as Python imports it from one file.

    Raises:
        Unsupported: it is not installed.
    """
    found = importlib.util.find_spec("pypdf")
    if found is None or found.origin is None:
        raise Unsupported("PDF documents need a package (pypdf): pip install 'ayllu[local]'")
    folder = Path(found.origin).parent
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(folder.rglob("*.py")):
            name = Path("pypdf", path.relative_to(folder))
            archive.writestr(str(name), path.read_bytes())
    return packed.getvalue()
