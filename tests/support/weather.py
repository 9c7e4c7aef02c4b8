"""An own actor whose operations are tools of agents, and a script that calls them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import anyio

from ayllu.actors.engines.engine import Generation, Prompt
from ayllu.actors.engines.scripted import Step
from ayllu.bus.context import current_call
from ayllu.schemas import ToolDefinition, webmethod

ANSWER = "It is sunny in Cusco , and it will stay so until the evening ."
WORDS = [word if number == 0 else f" {word}" for number, word in enumerate(ANSWER.split())]


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
    """Return a script: it calls tools, and when they have answered, says `ANSWER`; it goes on where it was cut off."""

    def script(prompt: Prompt, _: Generation) -> Sequence[Step]:
        messages = prompt.messages[:-1] if prompt.continues else prompt.messages
        said = prompt.messages[-1].text if prompt.continues else ""
        if messages[-1].role != "tool" and calls:
            return [calling(*calls)]
        left = ANSWER.removeprefix(said)
        return [word for word in WORDS if word] if left == ANSWER else _pieces(left)

    return script


def _pieces(text: str) -> list[str]:
    found, start = [], 0
    for number, character in enumerate(text):
        if character == " " and number > start:
            found.append(text[start:number])
            start = number
    return [*found, text[start:]]
