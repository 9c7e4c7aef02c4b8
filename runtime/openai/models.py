"""``/v1/models`` and ``/v1/models/{id}`` in terms of our `models`."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ...schemas import Model, ModelNotFound, encode
from ...schemas.webmethod import NoParameters
from .framing import Translated

OPERATION = "models"
_MODELS = msgspec.json.Decoder(list[Model])
_KINDS = ("language", "embedding")
"""Models that OpenAI's protocol can ask; reward models have an operation of their own."""


class _Model(msgspec.Struct, frozen=True):
    id: str
    ayllu: Model
    object: Literal["model"] = "model"
    created: Literal[0] = (
        0  # When a model was made is not known, and what is told must stay the same.
    )
    owned_by: Literal["ayllu"] = "ayllu"


class _Models(msgspec.Struct, frozen=True):
    data: list[_Model]
    object: Literal["list"] = "list"


def translate_models() -> Translated[Any]:
    """Return the request for the list of models in our own terms."""
    return Translated(
        OPERATION, NoParameters(), _MODELS, lambda found: encode(_Models(_told(found)))
    )


def translate_model(name: str) -> Translated[Any]:
    """Return the request for one model in our own terms; it is found by its aliases too."""

    def whole(found: list[Model]) -> bytes:
        for model in _told(found):
            if name in (model.id, *model.ayllu.aliases):
                return encode(model)
        raise ModelNotFound(f"no live actor serves the model {name!r}")

    return Translated(OPERATION, NoParameters(), _MODELS, whole)


def _told(found: list[Model]) -> list[_Model]:
    return [_Model(model.name, model) for model in found if model.kind in _KINDS]
