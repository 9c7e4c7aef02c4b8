"""What an actor is on the bus: a service, and the operations that it implements."""

from __future__ import annotations

from collections.abc import Mapping

from ..schemas import (
    OWN_OPERATIONS,
    Operation,
    encode,
    operations_of,
    own_operations,
    tool_offers,
)
from .client import TOOLS
from .subjects import encode_token
from .transport import Endpoint, ServiceInfo


def implemented_operations(actor: object) -> tuple[Operation, ...]:
    """Return the operations of all Protocols that an actor's class inherits from.

    Raises:
        TypeError: it inherits from none, or leaves out a method.
    """
    return operations_of_class(type(actor))


def operations_of_class(actor: type) -> tuple[Operation, ...]:
    """Return the operations of all Protocols that a class inherits from.

    Raises:
        TypeError: it inherits from none, or leaves out a method.
    """
    operations: list[Operation] = []
    for protocol in actor.__mro__:
        if any(hasattr(function, "__webmethod__") for function in vars(protocol).values()):
            operations += operations_of(protocol)
    for operation in operations:
        if getattr(actor, operation.method) is getattr(operation.protocol, operation.method):
            raise TypeError(f"{actor.__name__} does not implement {operation.method}")
    if not operations:
        raise TypeError(f"{actor.__name__} inherits from no Protocol with @webmethod")
    return tuple(operations)


def describe(actor: object) -> tuple[ServiceInfo, Mapping[str, Operation]]:
    """Return an actor as a service, and its operations by subject.

    An actor may have ``service_name``, ``service_metadata``, a method ``service_stats`` (see `ServiceInfo.stats`) and, where
    operations are routed by model, ``models``. What else the attributes of an actor say stands at `Service`. What gateways must
    know of operations that are not ours, and agents of those that are tools, is added to the metadata.
    """
    name: str = getattr(actor, "service_name", type(actor).__name__)
    subjects: dict[str, Operation] = {}
    for operation in implemented_operations(actor):
        if operation.routed_by is None:
            subjects[operation.subject] = operation
        else:
            for model in sorted(getattr(actor, "models", ())):
                subjects[f"{operation.subject}.{encode_token(model)}"] = operation
    endpoints = [
        Endpoint(f"{operation.name.replace('.', '_')}-{number}", subject, name)
        for number, (subject, operation) in enumerate(subjects.items())
    ]
    metadata: dict[str, str] = dict(getattr(actor, "service_metadata", {}))
    offers = tool_offers(subjects.values())
    if offers:
        metadata[TOOLS] = encode(offers).decode()
    described = own_operations(subjects.values())
    if described:
        metadata[OWN_OPERATIONS] = encode(described).decode()
    info = ServiceInfo(
        name=name,
        version="0.1.0",
        description=(type(actor).__doc__ or "").partition("\n")[0],
        metadata=metadata,
        endpoints=endpoints,
        stats=getattr(actor, "service_stats", None),
    )
    return info, subjects
