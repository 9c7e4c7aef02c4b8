"""An own actor whose operations are tools of agents, and a script that calls them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

import anyio

from ayllu.actors.engines.engine import Generation, Prompt
from ayllu.actors.engines.scripted import Step
from ayllu.bus.context import current_call
from ayllu.schemas import ToolDefinition, webmethod

TAIL = " is sunny in Cusco , and it will stay so until the evening ."


class Weather(Protocol):
    """Tells the weather."""

    @webmethod(route="/weather/now", tool=True)
    async def now(self, city: str) -> str:
        """Return the weather in a city."""
        ...

    @webmethod(route="/weather/forecast", tool=True, idempotent=True)
    async def forecast(self, city: str, days: int = 1) -> str:
        """Return the weather of the next days in a city."""
        ...


class WeatherActor(Weather):
    """Counts how often it is asked, and can be held up.

    Attributes:
        keys: the idempotency keys of the calls, in order.
        gate: calls wait until it is set.
        asked: set when a call is there.
    """

    service_name = "weather"

    def __init__(self, *, held: bool = False) -> None:
        self.keys: list[str] = []
        self.gate = anyio.Event()
        self.asked = anyio.Event()
        if not held:
            self.gate.set()

    async def now(self, city: str) -> str:
        return await self._answer(f"sunny in {city}")

    async def forecast(self, city: str, days: int = 1) -> str:
        return await self._answer(f"{days} days of sun in {city}")

    async def _answer(self, text: str) -> str:
        context = current_call.get()
        self.keys.append(context.idempotency_key if context else "")
        self.asked.set()
        await self.gate.wait()
        return text


TOOLS = [ToolDefinition("weather.now"), ToolDefinition("weather.forecast")]
CONFIG = {"available_tools": TOOLS, "executable_tools": {"weather.now", "weather.forecast"}}


def calling(*calls: str) -> str:
    """Return what a model writes to call tools, given as JSON objects."""
    return f"<tool_call>[{', '.join(calls)}]</tool_call>"


NOW = '{"name": "weather.now", "arguments": {"city": "Cusco"}}'
FORECAST = '{"name": "weather.forecast", "arguments": {"city": "Cusco", "days": 2}}'


def weather_script(*calls: str) -> object:
    """Return a script: it calls tools, and when they have answered, says a number and `TAIL`.

    The number is another one each time, so that an answer that was begun anew can be told from one that was continued.
    """
    numbers = itertools.count(1)

    def script(prompt: Prompt, _: Generation) -> Sequence[Step]:
        messages = prompt.messages[:-1] if prompt.continues else prompt.messages
        said = prompt.messages[-1].text if prompt.continues else ""
        if messages[-1].role != "tool" and calls:
            return [calling(*calls)]
        answer = (said.split(" ")[0] or str(next(numbers))) + TAIL
        return _pieces(answer.removeprefix(said))

    return script


def _pieces(text: str) -> list[str]:
    found, start = [], 0
    for number, character in enumerate(text):
        if character == " " and number > start:
            found.append(text[start:number])
            start = number
    return [*found, text[start:]]
