"""The schema of a function's arguments, read from its signature and docstring, and the arguments read by it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_type_hints

import msgspec
from msgspec import UNSET, Meta, UnsetType

from ....schemas import InvalidRequest
from .docstrings import parameters_of, summary_of

_REFUSED: Mapping[Any, str] = {
    inspect.Parameter.VAR_POSITIONAL: "takes any number of arguments (*{0}), which no schema can say: name them",
    inspect.Parameter.VAR_KEYWORD: "takes any keyword (**{0}), which no schema can say: name them",
    inspect.Parameter.POSITIONAL_ONLY: "takes {0} by position only; arguments of tools have names",
}


class Signature:
    """What a function takes.

    Args:
        function: the function; each parameter has an annotation that JSON can say.
        path: what it is called in messages.

    Attributes:
        description: the first paragraph of the docstring.
        parameters: the JSON schema of the arguments, an object that refers to nothing outside of it.

    Raises:
        InvalidRequest: it cannot be a tool; the message names the function and the parameter.
    """

    def __init__(self, function: Callable[..., Any], path: str) -> None:
        self.description = summary_of(function)
        self._type = _arguments_type(function, path)
        self.parameters = _schema_of(self._type)

    def read(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments as the function takes them; what was not given keeps the function's own default.

        Raises:
            InvalidRequest: they are wrong; the message has the path.
        """
        try:
            read = msgspec.convert(arguments, self._type)
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"the arguments are wrong: {error}") from error
        values = {name: getattr(read, name) for name in read.__struct_fields__}
        return {name: value for name, value in values.items() if value is not UNSET}


def _arguments_type(function: Callable[..., Any], path: str) -> type[msgspec.Struct]:
    """Return the type of a function's arguments."""
    if not inspect.isroutine(function):
        raise InvalidRequest(f"{path} is no function, but a {type(function).__name__}")
    try:
        hints = get_type_hints(function, include_extras=True)
        parameters = inspect.signature(function).parameters.values()
    except Exception as error:
        raise InvalidRequest(f"the signature of {path} cannot be read: {error}") from error
    told = parameters_of(function)
    fields = [_field(one, hints, told.get(one.name, ""), path) for one in parameters]
    try:
        return msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(
            f"the parameters of {path} cannot be read from JSON: {error}"
        ) from error


def _field(
    parameter: inspect.Parameter, hints: Mapping[str, Any], description: str, path: str
) -> tuple[str, Any, Any]:
    """Return a parameter as a field; a default is told in the schema, and stays the function's."""
    name = parameter.name
    refused = _REFUSED.get(parameter.kind)
    if refused is not None:
        raise InvalidRequest(f"{path} {refused.format(name)}")
    if name not in hints:
        raise InvalidRequest(f"the parameter {name} of {path} has no annotation")
    kind = hints[name]
    _check_type(kind, name, path)
    extra: dict[str, Any] = {}
    optional = parameter.default is not inspect.Parameter.empty
    if optional:
        try:
            extra["default"] = msgspec.to_builtins(parameter.default)
        except (TypeError, msgspec.MsgspecError):
            extra.clear()  # It is nobody's but the function's.
    if description or extra:
        kind = Annotated[kind, Meta(description=description or None, extra_json_schema=extra)]
    return (name, kind | UnsetType, UNSET) if optional else (name, kind, msgspec.NODEFAULT)


def _check_type(kind: Any, name: str, path: str) -> None:
    try:
        msgspec.json.schema(kind)
        msgspec.json.Decoder(kind)
    except (TypeError, ValueError, RecursionError, NameError) as error:
        why = str(error).splitlines()[-1]  # What stands before it is advice for msgspec's users.
        raise InvalidRequest(
            f"the parameter {name} of {path} has a type that JSON cannot say: {why}"
        ) from error


def _schema_of(arguments: type[msgspec.Struct]) -> dict[str, Any]:
    (reference,), components = msgspec.json.schema_components(
        [arguments], ref_template="#/$defs/{name}"
    )
    own = dict(components.pop(str(reference["$ref"]).rpartition("/")[2]))
    own.pop("title", None)
    return {**own, "$defs": components} if components else own


def undescribed(path: str) -> InvalidRequest:
    """Return the error for a function of which nothing says what it does."""
    return InvalidRequest(f"{path} has no docstring, and no description: say what it does")
