"""One contract for embedding models: the real one that comes as a package, and the double of the tests."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import numpy as np
import pytest
from support.embedders import HashEmbedder

from ayllu.actors.embedding.embedder import Embedder
from ayllu.actors.embedding.registry import build_embedder, default_embedders
from ayllu.schemas import InvalidRequest

pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("embedder-contract")]

MAKERS: dict[str, Callable[[], Embedder]] = {
    "onnx": lambda: build_embedder(default_embedders()[0]),
    "hash": HashEmbedder,
}


@pytest.fixture(params=sorted(MAKERS))
def make(request: pytest.FixtureRequest) -> Callable[[], Embedder]:
    return MAKERS[request.param]


TEXTS = ["a cat sat on the mat", "rain", "the price of steel rose again " * 20, "a", "dog and cat"]


async def test_each_text_has_a_row_of_length_one(make: Callable[[], Embedder]) -> None:
    async with make() as embedder:
        vectors = await embedder.embed(TEXTS)
        assert vectors.shape == (len(TEXTS), embedder.dimension)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
        assert (await embedder.embed([])).shape == (0, embedder.dimension)


async def test_the_order_of_texts_is_kept(make: Callable[[], Embedder]) -> None:
    async with make() as embedder:
        together = await embedder.embed(TEXTS)
        for text, vector in zip(TEXTS, together, strict=True):
            alone = (await embedder.embed([text]))[0]
            # Padding to another width rounds int8 differently.
            assert float(alone @ vector) > 0.97


async def test_texts_alike_are_near(make: Callable[[], Embedder]) -> None:
    async with make() as embedder:
        one, near, far = await embedder.embed(
            [
                "the cat sleeps on the sofa",
                "the cat sleeps on the bed",
                "steel prices rose in march",
            ]
        )
        assert float(one @ near) > float(one @ far) + 0.2


async def test_a_text_that_is_too_long_is_refused_by_its_number(
    make: Callable[[], Embedder],
) -> None:
    async with make() as embedder:
        for long in ("word " * (embedder.max_tokens + 1), "word " * 100_000):
            with pytest.raises(InvalidRequest, match="text 1"):
                await embedder.embed(["fine", long])
        assert len(await embedder.embed(["word " * embedder.max_tokens])) == 1


async def test_tokens_are_counted_and_nothing_is_cut(make: Callable[[], Embedder]) -> None:
    async with make() as embedder:
        assert embedder.count_tokens(["one", "one two", "word " * 5000]) == [1, 2, 5000]


async def test_many_callers_at_once_get_their_own(make: Callable[[], Embedder]) -> None:
    async with make() as embedder:
        expected = await embedder.embed(TEXTS)
        found: dict[int, np.ndarray] = {}

        async def ask(number: int) -> None:
            found[number] = (await embedder.embed([TEXTS[number % len(TEXTS)]]))[0]

        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(ask, number)
        for number, vector in found.items():
            assert float(vector @ expected[number % len(TEXTS)]) > 0.97
