"""What a trigger may be created with: everything that is wrong is said at once."""

from __future__ import annotations

from collections.abc import Iterator

from ...bus.durable import KeyValue
from ...bus.subjects import encode_token
from ...schemas import AylluError, Filter, InvalidRequest, NotFound, TriggerCreateRequest
from ...schemas.filters import And, Not, Or
from .patterns import kind_of, whole_pattern
from .records import due_subject
from .schedules import schedule_problems
from .templates import has_path, template_problems


async def checked_subject(agents: KeyValue, config: TriggerCreateRequest) -> str:
    """Return the subject of a trigger's events, whole, if everything about it is right.

    Raises:
        AylluError: something is wrong; where several things are, an `InvalidRequest` that lists them in its details.
    """
    problems: list[AylluError] = []
    subject = _subject(config, problems)
    if config.schedule is not None:
        problems += map(InvalidRequest, schedule_problems(config.schedule))
    if subject is not None:
        problems += map(InvalidRequest, _field_problems(config, subject))
    try:
        if await agents.get(config.agent_id) is None:
            problems.append(NotFound(f"there is no agent {config.agent_id!r}"))
    except InvalidRequest as error:
        problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems or subject is None:
        messages = [problem.message for problem in problems]
        raise InvalidRequest(
            f"the trigger cannot be created: {'; '.join(messages)}", details={"problems": messages}
        )
    return subject


def _subject(config: TriggerCreateRequest, problems: list[AylluError]) -> str | None:
    try:
        encode_token(config.name)
        if (config.subject is None) is (config.schedule is None):
            raise InvalidRequest("a trigger has either a `subject` or a `schedule`")
        if config.subject is None:
            return due_subject(config.name)
        return whole_pattern(config.subject)
    except InvalidRequest as error:
        problems.append(error)
        return None


def _field_problems(config: TriggerCreateRequest, subject: str) -> Iterator[str]:
    """Yield what is wrong with the fields that a trigger names of its events."""
    type_ = kind_of(subject)
    if config.template is not None:
        yield from template_problems(config.template, type_)
    if config.filter is not None and type_ is not None:
        for key in sorted(set(_keys(config.filter))):
            if not has_path(type_, key):
                fields = ", ".join(type_.__struct_fields__)
                yield f"filter: {type_.__name__} has no field {key!r}; it has {fields}"


def _keys(wanted: Filter) -> Iterator[str]:
    if isinstance(wanted, And | Or):
        for part in wanted.filters:
            yield from _keys(part)
    elif isinstance(wanted, Not):
        yield from _keys(wanted.filter)
    else:
        yield wanted.key
