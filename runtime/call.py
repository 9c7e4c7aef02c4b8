"""``ayllu call``: any operation from the command line, its reply or events as lines of JSON."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from ..client import connect
from ..schemas import (
    OPERATIONS,
    InvalidRequest,
    Operation,
    OwnOperation,
    TooLarge,
    operation_from,
)
from ..schemas.own_operations import problem_with

MAX_PAYLOAD = 64 << 20


def list_operations(operations: Mapping[str, Operation]) -> None:
    """Print the name and purpose of each operation."""
    width = max(map(len, operations))
    for name, operation in operations.items():
        sys.stdout.write(f"{name:<{width}}  {operation.summary}\n")


def operation_named(name: str) -> Operation:
    """Return the operation of a name; one that is not ours may be an own actor's, which the gateway knows.

    Raises:
        InvalidRequest: it can be neither.
    """
    operation = OPERATIONS.get(name)
    if operation is not None:
        return operation
    if problem_with(name, "Own"):
        raise InvalidRequest(f"there is no operation {name!r}; `ayllu call` lists ours")
    return operation_from(OwnOperation(name, "Own", "list"))


def read_payload(argument: str) -> bytes:
    """Return the payload that an argument means: JSON itself, ``@FILE``, or ``-`` for standard input.

    Raises:
        InvalidRequest: the file cannot be read.
        TooLarge: there is too much of it.
    """
    try:
        if argument == "-":
            data = sys.stdin.buffer.read(MAX_PAYLOAD + 1)
        elif argument.startswith("@"):
            data = Path(argument[1:]).read_bytes()
        else:
            data = argument.encode()
    except OSError as error:
        raise InvalidRequest(f"{argument[1:]} cannot be read: {error.strerror}") from error
    if len(data) > MAX_PAYLOAD:
        raise TooLarge(f"the payload is larger than {MAX_PAYLOAD} bytes")
    return data


async def call_operation(
    url: str,
    operation: Operation,
    payload: bytes,
    timeout: float | None,
    token: str | None = None,
) -> None:
    """Call an operation through a gateway, and print what comes, a line each, as it comes.

    Raises:
        AylluError: what the call ended in.
    """
    operation.read(payload)  # Errors in the payload need no gateway.
    async with connect(url, token=token) as stack:
        call = await stack.call(operation, payload, timeout=timeout)
        replied = operation.name in OPERATIONS
        try:
            while events := await call.take():
                replied = True
                for event in events:
                    sys.stdout.write(event.decode() + "\n")
                sys.stdout.flush()
            if not replied and call.result is not None:
                # Whether an own operation has one reply is seen when it ends without an event.
                sys.stdout.write(call.result.decode() + "\n")
        finally:
            call.close()
