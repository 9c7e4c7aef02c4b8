"""Events on the bus (extensions): what happened, for programs that follow it and triggers that agents are started by.

Each has a subject under ``ayllu.v1.event.``, stands in one stream, and is JSON. Programs publish their own under
``ayllu.v1.event.`` and any other first token than those here:

    ayllu.v1.event.turn.<agent>.<status>        TurnEnded
    ayllu.v1.event.job.<kind>.<status>          JobEnded
    ayllu.v1.event.document.<bank>.<change>     DocumentsChanged
    ayllu.v1.event.schedule.<trigger>.due       ScheduleDue
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta

from .agents import TurnStatus
from .delegation import Cause, Limits, Spent, TurnRef
from .errors import ErrorInfo
from .wire import Reply


class TurnEnded(Reply, frozen=True):
    """A turn has ended."""

    agent_uuid: str
    turn_id: str
    status: TurnStatus
    ended_at: datetime
    text: Annotated[str, Meta(description="What was answered, cut where it is very long.")] = ""
    error: ErrorInfo | None = None
    spent: Spent = Spent()
    left: Annotated[
        Limits, Meta(description="What its limits leave, for the turns that follow from it.")
    ] = Limits()
    parent: Annotated[TurnRef | None, Meta(description="The turn that started it, if one did.")] = (
        None
    )
    cause: Annotated[Cause | None, Meta(description="The event that started it, if one did.")] = (
        None
    )


class JobEnded(Reply, frozen=True):
    """A job has completed, failed, or was cancelled."""

    job: str
    kind: Annotated[
        str, Meta(description="`sft`, `dpo`, `reward`, `synthetic_data` or `improvement`.")
    ]
    status: Annotated[str, Meta(description="`completed`, `failed` or `cancelled`.")]
    ended_at: datetime
    error: str = ""


class DocumentsChanged(Reply, frozen=True):
    """Documents of a memory bank were inserted, updated or deleted."""

    bank: str
    change: Literal["inserted", "updated", "deleted"]
    documents: Annotated[list[str], Meta(description="Their ids: all those of one request.")]


class ScheduleDue(Reply, frozen=True):
    """The schedule of a trigger is due."""

    trigger: str
    at: datetime
