"""The shields actor: any number of shields behind the Safety API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ...bus.client import SHIELDS
from ...schemas import (
    InvalidRequest,
    NotFound,
    Safety,
    ShieldOffer,
    ShieldRequest,
    ShieldResponse,
    encode,
)
from ..tools.checking import by_name, problem_with
from .shield import Shield


class ShieldsActor(Safety):
    """Runs shields.

    Args:
        shields: the shields; no two have the same name.

    Raises:
        InvalidRequest: two have the same name, or the parameters of one are no JSON schema.
    """

    service_name = "safety"

    def __init__(self, shields: Sequence[Shield]) -> None:
        self._shields = by_name(shields, "shields")
        self.models = frozenset(self._shields)
        """The names that requests are routed by."""
        offers = [
            ShieldOffer(shield.name, shield.description, dict(shield.parameters))
            for shield in shields
        ]
        self.service_metadata = {SHIELDS: encode(offers).decode()}
        self._checks = 0
        self._violations = 0

    def service_stats(self) -> dict[str, Any]:
        """Return how many messages were looked at, and in how many something was found."""
        return {"checks": self._checks, "violations": self._violations}

    async def check(self, request: ShieldRequest) -> ShieldResponse:
        """Let a shield look at a message; see `Safety.check`.

        Raises:
            NotFound: there is no shield of this name here.
            InvalidRequest: the params are wrong.
        """
        shield = self._shields.get(request.shield_type)
        if shield is None:
            raise NotFound(f"there is no shield {request.shield_type!r} here")
        problem = problem_with(shield.parameters, request.params)
        if problem is not None:
            raise InvalidRequest(f"params of {shield.name!r}: {problem}")
        self._checks += 1
        violation = await shield.check(request)
        if violation is not None:
            self._violations += 1
            violation = msgspec.structs.replace(violation, shield=shield.name)
        return ShieldResponse(violation)
