"""What own actors say of their operations, and which of them a gateway may serve."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Protocol

import msgspec
import pytest

from ayllu.schemas import (
    OPERATIONS,
    DescribedOperation,
    Inference,
    InvalidRequest,
    OwnOperation,
    Wire,
    decode,
    encode,
    operation_from,
    operations_of,
    own_operations,
    webmethod,
)
from ayllu.schemas.own_operations import (
    LONGEST_TIMEOUT,
    MOST_DESCRIPTION_BYTES,
    MOST_SCHEMA_BYTES,
    OwnParameters,
    problem_with,
    taken_by,
)


class Item(Wire, frozen=True):
    """A thing."""

    name: str


class Find(Wire, frozen=True):
    """What is looked for."""

    text: str
    stream: bool = False


class Odd:
    """A type that has no schema."""


def whole(items: Sequence[Item]) -> list[Item]:
    return list(items)


class Shop(Protocol):
    """Sells things."""

    @webmethod(route="/shop/price", method="GET", timeout=1e9)
    async def price(
        self,
        name: Annotated[str, msgspec.Meta(min_length=1)],
        count: int = 1,
        note: str | None = None,
        *,
        rounded: bool = False,
    ) -> float:
        """Tell a price."""
        ...

    @webmethod(route="/shop/stock")
    async def stock(self, shelf: str, items: list[Item]) -> None:
        """Put things on a shelf."""
        ...

    @webmethod(route="/shop/find")
    async def find(self, request: Find) -> list[Item]:
        """Find things."""
        ...

    @webmethod(route="/shop/find", assemble=whole)
    def stream_find(self, request: Find) -> AsyncIterator[Item]:
        """Find things, one after the other."""
        ...

    @webmethod(route="/shop/odd")
    async def odd(self) -> Odd:
        """Return what has no schema."""
        ...

    @webmethod(route="/shop/routed", routed_by="name")
    async def routed(self, request: Item) -> None: ...

    @webmethod(route="/models/mine")
    async def mine(self) -> None: ...


DESCRIBED = {one.name: one for one in own_operations(operations_of(Shop))}


@pytest.mark.requirement("own-actor-described")
def test_what_is_said_of_each_kind() -> None:
    assert list(DESCRIBED) == [
        "shop.price",
        "shop.stock",
        "shop.find",
        "shop.find.stream",
        "shop.odd",
    ]
    price = DESCRIBED["shop.price"]
    assert (price.api, price.kind, price.verb, price.timeout) == (
        "Shop",
        "unary",
        "GET",
        LONGEST_TIMEOUT,
    )
    assert price.query == {"name": "text", "count": "json", "note": "text", "rounded": "json"}
    assert price.parameters is not None
    assert price.parameters["required"] == ["name"]
    assert price.reply == {"type": "number"}
    stock = DESCRIBED["shop.stock"]
    assert (stock.body, stock.query, stock.reply) == ("items", {"shelf": "text"}, {"type": "null"})
    stream = DESCRIBED["shop.find.stream"]
    assert (stream.kind, stream.body, stream.summary) == (
        "stream",
        "",
        "Find things, one after the other.",
    )
    assert DESCRIBED["shop.odd"].reply is None


@pytest.mark.requirement("own-actor-described")
def test_a_gateway_reads_what_was_said_and_serves_it() -> None:
    text = encode(list(DESCRIBED.values()))
    assert decode(text, list[DescribedOperation]) == list(DESCRIBED.values())
    for own in decode(text, list[OwnOperation]):
        [real] = [one for one in operations_of(Shop) if one.name == own.name]
        made = operation_from(own)
        for field in (
            "name",
            "api",
            "kind",
            "verb",
            "route",
            "sse",
            "summary",
            "subject",
            "base_name",
        ):
            assert getattr(made, field) == getattr(real, field), field
    find = operation_from(DESCRIBED["shop.find"])
    read = find.read(b'{"text":"x","stream":true}')
    assert isinstance(read, OwnParameters)
    assert read.stream is True
    assert find.model_of(find.read(b"{}")) is None
    for wrong in (b"[]", b'"x"', b"{", b'{"a":' * 100_000):
        with pytest.raises(InvalidRequest):
            find.read(wrong)


@pytest.mark.requirement("own-actor-described")
def test_operations_of_ours_are_not_described() -> None:
    assert own_operations(operations_of(Inference)) == []


class Large(Protocol):
    """Has long schemas."""

    @webmethod(route="/large/one")
    async def one(self, request: Item) -> Any: ...


@pytest.mark.requirement("own-actor-described")
def test_what_is_too_long_is_left_out() -> None:
    [operation] = operations_of(Large)
    replace = msgspec.structs.replace
    fields: list[tuple[str, type]] = [(f"field_{number}", str) for number in range(1000)]
    wide = msgspec.defstruct("Wide", fields)
    made = _changed(operation, input=wide)
    [described] = own_operations([made])
    assert described.parameters is None
    assert described.reply == {}
    middle = msgspec.defstruct("Middle", fields[: MOST_SCHEMA_BYTES // 64])
    many = [_changed(operation, name=f"large.n{number}", input=middle) for number in range(100)]
    [alone] = own_operations(many[:1])
    assert alone.parameters is not None
    all_of_them = own_operations(many)
    assert len(all_of_them) == 100
    assert all_of_them[0] == replace(alone, parameters=None, reply=None)
    assert len(encode(all_of_them)) < MOST_DESCRIPTION_BYTES


def _changed(operation: Any, **fields: Any) -> Any:
    return dataclasses.replace(operation, **fields)


@pytest.mark.requirement("own-actor-hostile")
@pytest.mark.parametrize(
    ("name", "api"),
    [
        ("completion", "Shop"),
        ("completion.smollm2", "Shop"),  # The subject of a model's completions.
        ("models.stream", "Shop"),
        ("v1.models", "Shop"),
        ("metrics", "Shop"),
        ("shop.find", "Inference"),
        ("shop..find", "Shop"),
        ("", "Shop"),
        ("shop.*", "Shop"),
        ("shop.>", "Shop"),
        ("shop.find\n", "Shop"),
        ("shop find", "Shop"),
        ("shop.{name}", "Shop"),
        ("x" * 161, "Shop"),
        ("shop.find", ""),
        ("shop.find", "*"),
        ("shop.find", "Shop\n"),
    ],
)
def test_names_that_no_own_operation_may_have(name: str, api: str) -> None:
    assert problem_with(name, api)


@pytest.mark.requirement("own-actor-hostile")
def test_names_that_it_may_have() -> None:
    for name in ("shop.find", "shop", "shop.find.stream", "my-shop.find_2"):
        assert not problem_with(name, "Shop")
    more = taken_by({**OPERATIONS, "shop.x": OPERATIONS["models"]})
    assert problem_with("shop.find", "Shop", more)


@pytest.mark.requirement("own-actor-hostile")
@pytest.mark.parametrize(
    "text",
    [
        '{"name":"shop.find","api":"Shop"}',
        '{"name":"shop.find","api":"Shop","kind":"other"}',
        '{"name":"shop.find","api":"Shop","kind":"unary","verb":"TRACE"}',
        '{"name":"shop.find","api":"Shop","kind":"unary","timeout":0}',
        '{"name":"shop.find","api":"Shop","kind":"unary","timeout":1e300}',
        '{"name":"shop.find\\r\\n","api":"Shop","kind":"unary"}',
        '{"name":"shop.find","api":"Shop","kind":"unary","query":{"x":1}}',
        '{"name":"shop.find","api":"Shop","kind":"unary","x":' + '{"a":' * 100_000,
    ],
)
def test_descriptions_that_are_none(text: str) -> None:
    with pytest.raises(InvalidRequest):
        decode(text, OwnOperation)
