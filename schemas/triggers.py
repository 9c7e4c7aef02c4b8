"""The Triggers API (extension): agents that are started by what happens on the bus."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Any, Protocol

from msgspec import Meta

from .delegation import AgentId, Limits
from .filters import Filter
from .webmethod import webmethod
from .wire import Reply, Wire

MAX_TEMPLATE = 20_000
MAX_PATTERN = 1024
MAX_EVERY = 366 * 86_400.0


class Schedule(Wire, frozen=True):
    """When a trigger is due: one of both."""

    every: Annotated[
        Annotated[float, Meta(ge=1, le=MAX_EVERY)] | None,
        Meta(description="So many seconds, counted from when the trigger was created."),
    ] = None
    cron: Annotated[
        Annotated[str, Meta(min_length=1, max_length=256)] | None,
        Meta(
            description="The five fields of cron, in UTC: `0 8 * * MON-FRI` is 8 o'clock on working days."
        ),
    ] = None


class TriggerCreateRequest(Wire, frozen=True):
    """Let an agent be started by events: by those on a subject, or by a schedule."""

    name: Annotated[AgentId, Meta(description="The trigger's.")]
    agent_id: Annotated[AgentId, Meta(description="The agent that is started.")]
    subject: Annotated[
        Annotated[str, Meta(min_length=1, max_length=MAX_PATTERN)] | None,
        Meta(
            description="Of the events, with or without `ayllu.v1.event.` before it; `*` is any one token, `>` at the end "
            "any that follow: `turn.support.completed`, `job.*.failed`, `document.handbook.>`, `shop.order`. In `turn`, "
            "`job` and `document` the second token is a name; letters, digits and `-` stand for themselves, other bytes "
            "of its UTF-8 text are written `=XX` (a dot is `=2E`), or left as they are where no dot is among them."
        ),
    ] = None
    schedule: Schedule | None = None
    filter: Annotated[
        Filter | None,
        Meta(
            description="Which of the events: a filter over the event's own JSON, as those of memory banks are over metadata."
        ),
    ] = None
    template: Annotated[
        Annotated[str, Meta(min_length=1, max_length=MAX_TEMPLATE)] | None,
        Meta(
            description="What the agent is told. `$text` and `${error.message}` are fields of the event, `$subject` is where "
            "it stood, `$event` all of it, `$$` a dollar sign. By default the event, in words."
        ),
    ] = None
    limits: Annotated[
        Limits,
        Meta(
            description="Of each turn that it starts; where the event is the end of a turn, what that one has left holds, too."
        ),
    ] = Limits()
    max_chain: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="How many triggers may follow one another, with this one; an event that is further on starts nothing.",
        ),
    ] = 100


class Trigger(Reply, frozen=True):
    """A trigger, and what came of it: numbers are some seconds old, and may lack what a worker that was killed had counted."""

    name: str
    created_at: datetime
    config: TriggerCreateRequest
    subject: Annotated[str, Meta(description="Of the events that start it, whole.")]
    fired: Annotated[int, Meta(description="Events that have started a turn.")] = 0
    skipped: Annotated[int, Meta(description="Events that did not pass the filter.")] = 0
    refused: Annotated[
        int,
        Meta(description="Events that could not start a turn: the last reason is `last_error`."),
    ] = 0
    last_fired_at: datetime | None = None
    last_error: str = ""
    next_at: Annotated[
        datetime | None, Meta(description="When its schedule is due, if it has one.")
    ] = None


class TriggerPreviewRequest(Wire, frozen=True):
    """See what a trigger would make of an event; nothing is started."""

    name: AgentId
    event: Annotated[dict[str, Any], Meta(description="The event's JSON.")] = {}
    subject: Annotated[
        str | None, Meta(description="Where it stands; by default the trigger's own subject.")
    ] = None


class TriggerPreview(Reply, frozen=True):
    """What a trigger would make of an event."""

    starts: Annotated[bool, Meta(description="Whether the agent would be started.")]
    reason: Annotated[str, Meta(description="Why not.")] = ""
    message: Annotated[str, Meta(description="What it would be told.")] = ""
    limits: Annotated[Limits, Meta(description="What its turn might take.")] = Limits()


class Triggers(Protocol):
    """Let agents be started by events (extensions)."""

    @webmethod(route="/triggers/create")
    async def create(self, request: TriggerCreateRequest) -> Trigger:
        """Create a trigger: it answers events that come after this."""
        ...

    @webmethod(route="/triggers/get", method="GET")
    async def get(self, name: str) -> Trigger:
        """Return a trigger."""
        ...

    @webmethod(route="/triggers/list", method="GET")
    def list(self) -> AsyncIterator[Trigger]:
        """List all triggers."""
        ...

    @webmethod(route="/triggers/delete", method="DELETE")
    async def delete(self, name: str) -> None:
        """Remove a trigger; turns that it has started go on."""
        ...

    @webmethod(route="/triggers/preview")
    async def preview(self, request: TriggerPreviewRequest) -> TriggerPreview:
        """See what a trigger would make of an event."""
        ...
