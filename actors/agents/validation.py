"""What an agent may be created with: everything that is wrong is said at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from ...bus.bus import Bus
from ...bus.client import client, offered_shields, offered_tools, served_models
from ...schemas import (
    AgenticSystemCreateRequest,
    AylluError,
    BuiltinTool,
    InvalidRequest,
    MemoryBanks,
    Model,
    ModelNotFound,
    NotFound,
    ShieldConfig,
    ShieldOffer,
    ToolOffer,
    Unsupported,
)
from ..prompts import parameters_schema
from ..tools.checking import problem_with
from .delegation import bound
from .history import budget_of
from .records import AgentRecord, BoundTool
from .shielding import COMMON_PARAMS, own_params
from .teams import check_team
from .tools import bind

RESERVED = frozenset(BuiltinTool)


async def resolved(bus: Bus, config: AgenticSystemCreateRequest, at: float) -> AgentRecord:
    """Return an agent as it is kept, if everything that it names is there.

    Raises:
        AylluError: something is wrong; where several things are, an `InvalidRequest` that lists them in its details.
    """
    problems: list[AylluError] = []
    context, prices = await _context(bus, config, problems)
    await _check_banks(bus, config, problems)
    tools = await _tools(bus, config, problems)
    await _check_shields(bus, config, problems)
    await check_team(bus, config, problems)
    tools += [bound(sub) for sub in config.sub_agents]
    delegated = {sub.tool_name for sub in config.sub_agents}
    problems += [
        InvalidRequest(f"require_approval: {name!r} is not among the executable_tools")
        for name in sorted(config.require_approval - config.executable_tools - delegated)
    ]
    record = AgentRecord(_described(config, tools), tools, context, at, prices)
    if not problems and budget_of(record, []) <= 0:
        problems.append(
            InvalidRequest(
                f"instructions, tools, retrieval and answer leave no room in the context of {context} tokens"
            )
        )
    if len(problems) == 1:
        raise problems[0]
    if problems:
        messages = [problem.message for problem in problems]
        raise InvalidRequest(
            f"the agent cannot be created: {'; '.join(messages)}", details={"problems": messages}
        )
    return record


def _described(
    config: AgenticSystemCreateRequest, tools: Sequence[BoundTool]
) -> AgenticSystemCreateRequest:
    """Return the configuration with what actors say of their tools where it says nothing: the model must know it."""
    bound = {tool.name: tool for tool in tools}
    described = [
        msgspec.structs.replace(
            tool,
            parameters=tool.parameters or bound[tool.tool_name].schema,
            description=tool.description or bound[tool.tool_name].description or None,
        )
        if tool.tool_name in bound
        else tool
        for tool in config.available_tools
    ]
    return msgspec.structs.replace(config, available_tools=described)


async def _context(
    bus: Bus, config: AgenticSystemCreateRequest, problems: list[AylluError]
) -> tuple[int, tuple[float, float]]:
    """Return the context of the agent's model, and its prices."""
    served: dict[str, Model] = {}
    for model in await served_models(bus):
        if model.kind == "language":
            for name in (model.name, *model.aliases):
                known = served.get(name)
                # Of several actors that serve it, the one with the least context may get a turn.
                served[name] = model if known is None or model.context < known.context else known
    found = served.get(config.model)
    if found is None:
        problems.append(
            ModelNotFound(
                f"no live actor serves the model {config.model!r}; served are {', '.join(sorted(served))}",
                details={"model": config.model, "served": sorted(served)},
            )
        )
        return 0, (0.0, 0.0)
    return found.context, (found.prompt_price, found.completion_price)


async def _check_banks(
    bus: Bus, config: AgenticSystemCreateRequest, problems: list[AylluError]
) -> None:
    wanted = config.memory_bank_uuids
    if not wanted:
        return
    if len(set(wanted)) < len(wanted):
        problems.append(InvalidRequest("memory_bank_uuids: a bank is named twice"))
    try:
        known = {bank.uuid async for bank in client(MemoryBanks, bus).get()}
    except AylluError as error:
        problems.append(error)
        return
    problems += [
        NotFound(f"there is no memory bank {bank!r}") for bank in wanted if bank not in known
    ]


async def _check_shields(
    bus: Bus, config: AgenticSystemCreateRequest, problems: list[AylluError]
) -> None:
    places = {"input_shields": config.input_shields, "output_shields": config.output_shields}
    for tool in config.available_tools:
        places[f"available_tools: {tool.tool_name!r}: input_shields"] = tool.input_shields
        places[f"available_tools: {tool.tool_name!r}: output_shields"] = tool.output_shields
    if not any(places.values()):
        return
    offers = await offered_shields(bus)
    problems += [
        problem
        for where, shields in places.items()
        for shield in shields
        if (problem := _shield_problem(offers, shield, where)) is not None
    ]


def _shield_problem(
    offers: Mapping[str, ShieldOffer], shield: ShieldConfig, where: str
) -> AylluError | None:
    offer = offers.get(shield.shield_type)
    if offer is None:
        known = ", ".join(sorted(offers)) or "none"
        return NotFound(
            f"{where}: no live actor runs the shield {shield.shield_type!r}; there are: {known}"
        )
    problem = problem_with(COMMON_PARAMS, shield.params)
    problem = problem or problem_with(offer.parameters, own_params(shield))
    if problem is None:
        return None
    return InvalidRequest(f"{where}: params of {shield.shield_type!r}: {problem}")


async def _tools(
    bus: Bus, config: AgenticSystemCreateRequest, problems: list[AylluError]
) -> list[BoundTool]:
    declared = {tool.tool_name: tool for tool in config.available_tools}
    if len(declared) < len(config.available_tools):
        problems.append(InvalidRequest("available_tools: two tools have the same name"))
    for tool in config.available_tools:
        shielded = tool.input_shields or tool.output_shields
        if shielded and tool.tool_name not in config.executable_tools:
            problems.append(
                Unsupported(
                    f"available_tools: {tool.tool_name!r} is run by the client, beyond the reach of its shields: the agent's "
                    "own output_shields and input_shields see its calls and answers"
                )
            )
        try:
            parameters_schema(tool)
        except AylluError as error:
            problems.append(error)
    problems += [
        InvalidRequest(f"executable_tools: {name!r} is not among the available_tools")
        for name in sorted(config.executable_tools - declared.keys())
    ]
    wanted = sorted(config.executable_tools & declared.keys())
    offers = await offered_tools(bus) if wanted else {}
    bound = [_bound(name, config, offers, problems) for name in wanted]
    return [one for one in bound if one is not None]


def _bound(
    name: str,
    config: AgenticSystemCreateRequest,
    offers: Mapping[str, ToolOffer],
    problems: list[AylluError],
) -> BoundTool | None:
    offer = offers.get(name)
    if offer is None:
        if name in RESERVED:
            problems.append(Unsupported(f"the tool {name!r} is not available in this deployment"))
        else:
            known = ", ".join(sorted(offers)) or "none"
            problems.append(
                NotFound(f"no live actor offers the tool {name!r}; offered are: {known}")
            )
        return None
    declared = next(tool for tool in config.available_tools if tool.tool_name == name)
    try:
        return bind(offer, parameters_schema(declared) if declared.parameters else None)
    except AylluError as error:
        problems.append(error)
        return None
