"""Operations: what ``@webmethod`` marks on the Protocol of an API, compiled once into a frozen description.

HTTP routes, bus subjects, websocket methods, documents and typed clients all read `Operation` and nothing else. A user's
own API is written the same way as ours: a Protocol whose methods carry ``@webmethod``, and `operations_of` compiles it.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NoReturn,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec

from .errors import InvalidRequest
from .wire import Wire, decode, encode

Verb = Literal["GET", "POST", "DELETE"]
Kind = Literal["unary", "stream", "list"]
F = TypeVar("F", bound=Callable[..., Any])

SUBJECT_PREFIX = "ayllu.v1.op."
STREAM_SUFFIX = ".stream"
DEFAULT_TIMEOUT = 600.0
_SCALARS = (str, int, float, bool)


@dataclass(frozen=True, slots=True)
class Mark:
    """What ``@webmethod`` was told."""

    route: str
    verb: Verb
    operation_id: str | None
    api: str | None
    routed_by: str | None
    assemble: Callable[[Sequence[Any]], Any] | None
    sse: bool
    timeout: float
    tool: bool
    idempotent: bool


@dataclass(frozen=True, slots=True)
class Parameter:
    """A plain parameter of a method: bare scalars travel in the query string over HTTP, the composite one is the body."""

    name: str
    type: Any
    required: bool
    in_query: bool


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation, or the streamed form of one.

    Attributes:
        name: the route with dots; the streamed form of an operation ends in ``.stream``.
        api: the API that it belongs to, as the draft names it.
        protocol: the Protocol that declares it.
        method: its method's name there.
        verb: the HTTP verb.
        route: the HTTP path.
        operation_id: the name in OpenAPI: the draft's own method name.
        summary: one line for people.
        kind: ``unary`` has one reply; ``stream`` yields events and ends in the assembled reply; ``list`` yields items.
        sse: whether HTTP sends the stream as server-sent events (else, a list is ``application/jsonl``).
        parameters: the plain parameters; empty for a method that takes one request Struct.
        input: the type of the payload on the bus and of ``params`` on the websocket: the request Struct, or a Struct
            made of the parameters.
        output: the type of the reply, event or item; None where there is none.
        assemble: makes the reply out of all events (``stream`` only).
        routed_by: the field of the input that names a model; requests then go to actors that serve it.
        timeout: the default deadline in seconds.
        tool: whether agents may call it as a tool.
        idempotent: whether a call whose outcome is unknown may be made again.
    """

    name: str
    api: str
    protocol: type
    method: str
    verb: Verb
    route: str
    operation_id: str
    summary: str
    kind: Kind
    sse: bool
    parameters: tuple[Parameter, ...]
    input: type[msgspec.Struct]
    output: Any
    assemble: Callable[[Sequence[Any]], Any] | None
    routed_by: str | None
    timeout: float
    tool: bool = False
    idempotent: bool = False

    @property
    def subject(self) -> str:
        """The bus subject, without the model's token."""
        return SUBJECT_PREFIX + self.name

    @property
    def namespace(self) -> str:
        """The name without its last part: ``memory_bank`` of ``memory_bank.insert``."""
        return self.base_name.rpartition(".")[0]

    @property
    def base_name(self) -> str:
        """The name that the whole and the streamed form share."""
        return self.name.removesuffix(STREAM_SUFFIX)

    def input_from(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> msgspec.Struct:
        """Return the payload of a Python call of the Protocol's method.

        Raises:
            TypeError: the arguments do not fit the method's signature.
        """
        if self.parameters:
            names = [parameter.name for parameter in self.parameters]
            if len(args) > len(names) or set(names[: len(args)]) & kwargs.keys():
                raise TypeError(f"{self.method}() takes {', '.join(names)}")
            return self.input(**dict(zip(names, args, strict=False)), **kwargs)
        if issubclass(self.input, NoParameters):
            if args or kwargs:
                raise TypeError(f"{self.method}() takes no arguments")
            return NoParameters()
        if len(args) == 1 and not kwargs:
            request = args[0]
        elif not args and kwargs.keys() == {"request"}:
            request = kwargs["request"]
        else:
            raise TypeError(f"{self.method}() takes one request")
        if not isinstance(request, self.input):
            raise TypeError(
                f"{self.method}() takes a {self.input.__name__}, not {type(request).__name__}"
            )
        return request

    def arguments(self, value: msgspec.Struct) -> dict[str, Any]:
        """Return the keyword arguments with which an implementation is called for a payload."""
        if self.parameters:
            return {name: getattr(value, name) for name in value.__struct_fields__}
        return {} if isinstance(value, NoParameters) else {"request": value}

    def read(self, payload: bytes | str) -> msgspec.Struct:
        """Read a payload from the bus, the websocket or a body.

        Raises:
            InvalidRequest: it does not fit; the message names the path of the field.
        """
        return decode(payload or b"{}", self.input)

    def model_of(self, value: msgspec.Struct) -> str | None:
        """Return the model that a payload names, for operations that are routed by it."""
        return getattr(value, self.routed_by) if self.routed_by else None


class NoParameters(Wire, frozen=True):
    """The payload of an operation that takes nothing."""


def webmethod(
    *,
    route: str,
    method: Verb = "POST",
    operation_id: str | None = None,
    api: str | None = None,
    routed_by: str | None = None,
    assemble: Callable[[Sequence[Any]], Any] | None = None,
    sse: bool = False,
    timeout: float = DEFAULT_TIMEOUT,
    tool: bool = False,
    idempotent: bool = False,
) -> Callable[[F], F]:
    """Mark a method of a Protocol as an operation.

    Args:
        route: the HTTP path; the operation's name is derived from it.
        method: the HTTP verb.
        operation_id: its name in OpenAPI, for ours the draft's; by default the operation's name with underscores.
        api: the draft's name of the API, if it differs from the Protocol's.
        routed_by: the field of the request that names a model.
        assemble: for a streamed method, the function that makes the whole reply out of all events.
        sse: for a method that only streams, send it as server-sent events over HTTP.
        timeout: the default deadline in seconds.
        tool: agents may call it as a tool: it has one reply, and its docstring tells the model what it does.
        idempotent: a call whose outcome is unknown, because an executor died over it, may be made again.
    """
    mark = Mark(
        route, method, operation_id, api, routed_by, assemble, sse, timeout, tool, idempotent
    )

    def decorate(function: F) -> F:
        function.__webmethod__ = mark  # type: ignore[attr-defined]
        return function

    return decorate


def operations_of(protocol: type) -> tuple[Operation, ...]:
    """Compile the Protocol of an API.

    Raises:
        TypeError: the Protocol breaks a rule; the message says which, and where.
    """
    operations = tuple(
        _compile(protocol, name, function)
        for name, function in vars(protocol).items()
        if hasattr(function, "__webmethod__")
    )
    if not operations:
        raise TypeError(f"{protocol.__name__} has no method with @webmethod")
    return operations


def _compile(protocol: type, method: str, function: Callable[..., Any]) -> Operation:
    mark: Mark = function.__webmethod__  # type: ignore[attr-defined]
    where = f"{protocol.__name__}.{method}"

    def wrong(rule: str) -> NoReturn:
        raise TypeError(f"{where}: {rule}")

    name = mark.route.strip("/").replace("/", ".")
    last = name.rpartition(".")[2]
    streamed_form = method == f"stream_{last}"
    if method != last and not streamed_form:
        wrong(f"a method of route {mark.route} is called {last}, or stream_{last} when it streams")
    hints = get_type_hints(function, include_extras=True)
    output = hints.pop("return", wrong)
    streams = get_origin(output) is AsyncIterator
    if output is wrong or ((streamed_form or mark.sse) and not streams):
        wrong("a streamed method returns AsyncIterator[Event], any other its reply or None")
    if mark.assemble is not None and not streamed_form:
        wrong("only the streamed form of an operation assembles")
    input_type, parameters = _input(where, function, hints, method, wrong)
    if mark.routed_by and mark.routed_by not in input_type.__struct_fields__:
        wrong(f"routed_by names the field {mark.routed_by!r}, which the request does not have")
    if mark.tool and (streams or mark.routed_by):
        wrong("a tool has one reply, and is not routed by a model")
    kind: Kind = "stream" if streamed_form or mark.sse else "list" if streams else "unary"
    return Operation(
        name=name + STREAM_SUFFIX if streamed_form else name,
        api=mark.api or protocol.__name__,
        protocol=protocol,
        method=method,
        verb=mark.verb,
        route=mark.route,
        operation_id=mark.operation_id or name.replace(".", "_"),
        summary=(inspect.getdoc(function) or "").partition("\n")[0],
        kind=kind,
        sse=kind == "stream",
        parameters=parameters,
        input=input_type,
        output=_output(get_args(output)[0] if streams else output),
        assemble=mark.assemble,
        routed_by=mark.routed_by,
        timeout=mark.timeout,
        tool=mark.tool,
        idempotent=mark.idempotent,
    )


def _output(type_: Any) -> Any:
    return None if type_ is type(None) else type_


def _input(
    where: str,
    function: Callable[..., Any],
    hints: dict[str, Any],
    method: str,
    wrong: Callable[[str], NoReturn],
) -> tuple[type[msgspec.Struct], tuple[Parameter, ...]]:
    names = [name for name in inspect.signature(function).parameters if name != "self"]
    if not names:
        return NoParameters, ()
    if names == ["request"]:
        request = hints["request"]
        if not (isinstance(request, type) and issubclass(request, msgspec.Struct)):
            wrong("the parameter `request` is a msgspec Struct")
        return request, ()
    signature = inspect.signature(function).parameters
    parameters = tuple(
        Parameter(
            name=name,
            type=hints[name],
            required=signature[name].default is inspect.Parameter.empty,
            in_query=_is_scalar(hints[name]),
        )
        for name in names
    )
    if sum(not parameter.in_query for parameter in parameters) > 1:
        wrong("at most one parameter is composite: it is the HTTP body")
    fields = [
        (parameter.name, parameter.type)
        if parameter.required
        else (parameter.name, parameter.type, signature[parameter.name].default)
        for parameter in parameters
    ]
    title = f"{where.partition('.')[0]}{method.title().replace('_', '')}Parameters"
    made = msgspec.defstruct(title, fields, bases=(Wire,), module=__name__)
    return made, parameters


def _is_scalar(type_: Any) -> bool:
    if get_origin(type_) is Annotated:
        return _is_scalar(get_args(type_)[0])
    if get_origin(type_) in (Union, UnionType):
        return all(_is_scalar(option) for option in get_args(type_) if option is not NoneType)
    return isinstance(type_, type) and issubclass(type_, _SCALARS)


def encode_input(operation: Operation, value: msgspec.Struct) -> bytes:
    """Return the payload of a request, checked as the server will check it: Python calls get the same errors early.

    Raises:
        InvalidRequest: a field has a value that its type does not allow.
    """
    try:
        payload = encode(value)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"{operation.name}: {error}") from error
    decode(payload, operation.input)
    return payload
