"""What every engine does: one body over the real model and the scripted engine."""

from __future__ import annotations

import json
import random
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import anyio
import pytest
import pytest_asyncio
from support.engines import (
    CITY,
    CONTEXT,
    COUNT,
    GREEDY,
    SLOTS,
    answer,
    sampled,
    scripted,
    small_model,
    user,
)
from support.gateway import running_gateway
from support.openai_servers import llama_server, openai_engine
from support.vllm_models import engine_before_vllm, vllm_engine, vllm_server

from ayllu.actors.engines.engine import ChatMessage, Generation, InferenceEngine, Prompt
from ayllu.actors.inference import InferenceActor
from ayllu.schemas import (
    AnswerChoice,
    ChatCompletionRequest,
    ContextLengthExceeded,
    Dialog,
    EngineDead,
    InvalidRequest,
    Message,
    Role,
    SamplingParams,
    StopReason,
    Unsupported,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

FACT = user("What is a llama? Answer in one short sentence.")
LONG = Prompt(text="word and " * 240)
FULL = Prompt(text=" ".join(f"{number}," for number in range(1, 120)))


WITH_VLLM = [
    pytest.param(kind, marks=[pytest.mark.vllm, pytest.mark.timeout(300)])
    for kind in ("vllm", "openai_before_vllm")
]
KINDS = ["llama_cpp", "openai", "scripted", *WITH_VLLM]


@pytest.fixture(scope="module")
def llama_url() -> Iterator[str]:
    """The address of a real server, for the engine ``openai``."""
    with llama_server(context=CONTEXT, slots=SLOTS) as url:
        yield url


@pytest.fixture(scope="module")
def vllm_url() -> Iterator[str]:
    """The address of vLLM's own server, for the engine ``openai``."""
    with vllm_server() as url:
        yield url


def made(kind: str, request: pytest.FixtureRequest) -> InferenceEngine:
    """Return an engine of a kind that is not started."""
    if kind == "openai":
        url = request.getfixturevalue("llama_url")
        return openai_engine(url, context=CONTEXT, slots=SLOTS)
    if kind == "openai_before_vllm":
        return engine_before_vllm(request.getfixturevalue("vllm_url"))
    if kind == "vllm":
        return vllm_engine()
    return small_model() if kind == "llama_cpp" else scripted()


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=KINDS)
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[InferenceEngine]:
    async with made(request.param, request) as started:
        yield started


def running(engine: InferenceEngine) -> int:
    return int(engine.running)  # type: ignore[attr-defined]  # both have it, for tests and metrics


async def generate_until_cancelled(
    engine: InferenceEngine, begun: anyio.Event, prompt: Prompt = COUNT
) -> None:
    async with aclosing(engine.generate(prompt, Generation(GREEDY))) as deltas:
        async for _ in deltas:
            begun.set()


@pytest.mark.requirement("engine-text")
async def test_an_answer_comes_in_pieces_and_ends_by_itself(engine: InferenceEngine) -> None:
    whole = await answer(engine, FACT, max_tokens=60)
    assert "llama" in whole.text.lower()
    assert whole.last.stop_reason is StopReason.finished_ok
    assert whole.last.prompt_tokens > 0
    assert 0 < whole.last.completion_tokens <= 60


@pytest.mark.requirement("engine-text")
async def test_deltas_come_in_order(engine: InferenceEngine) -> None:
    whole = await answer(engine, COUNT, max_tokens=20)
    assert len(whole.deltas) > 5
    numbers = [int(part) for part in whole.text.split(",")[:-1]]  # the last one may be cut
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


@pytest.mark.requirement("engine-max-tokens")
async def test_max_tokens_is_a_limit_and_a_stop_reason(engine: InferenceEngine) -> None:
    whole = await answer(engine, COUNT, max_tokens=5)
    assert whole.last.completion_tokens == 5
    assert whole.last.stop_reason is StopReason.max_tokens


@pytest.mark.requirement("engine-max-tokens")
async def test_zero_max_tokens_goes_up_to_the_context(engine: InferenceEngine) -> None:
    whole = await answer(engine, FULL, max_tokens=0)
    assert whole.last.stop_reason is StopReason.max_tokens
    assert whole.last.prompt_tokens + whole.last.completion_tokens == CONTEXT


@pytest.mark.requirement("engine-context")
async def test_a_prompt_that_does_not_fit_is_refused(engine: InferenceEngine) -> None:
    with pytest.raises(ContextLengthExceeded):
        await answer(engine, user("word " * CONTEXT))
    assert running(engine) == 0


async def test_an_empty_prompt_is_refused(engine: InferenceEngine) -> None:
    for empty in (Prompt(), Prompt(text="")):
        with pytest.raises(InvalidRequest):
            await answer(engine, empty)


@pytest.mark.requirement("engine-cancel")
async def test_closing_the_generator_frees_the_slot(engine: InferenceEngine) -> None:
    with anyio.fail_after(30):
        for _ in range(SLOTS + 1):
            deltas = engine.generate(COUNT, Generation(GREEDY))
            await anext(deltas)
            await deltas.aclose()
            assert running(engine) == 0
    assert (await answer(engine, COUNT, max_tokens=2)).last.completion_tokens == 2


@pytest.mark.requirement("engine-cancel")
async def test_cancelling_the_task_frees_the_slot(engine: InferenceEngine) -> None:
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            begun = [anyio.Event() for _ in range(SLOTS)]
            for event in begun:
                tasks.start_soon(generate_until_cancelled, engine, event)
            for event in begun:
                await event.wait()
            assert running(engine) == SLOTS
            tasks.cancel_scope.cancel()
        assert running(engine) == 0
    await answer(engine, COUNT, max_tokens=2)


@pytest.mark.requirement("engine-cancel")
async def test_a_prefill_can_be_cancelled(engine: InferenceEngine) -> None:
    begun = anyio.Event()
    started = anyio.current_time()
    with anyio.move_on_after(0.3) as scope:
        await generate_until_cancelled(engine, begun, LONG)
    assert scope.cancelled_caught
    assert not begun.is_set()
    assert running(engine) == 0
    # One batch of the prefill takes a second at most, on a machine that does other work too.
    assert anyio.current_time() - started < 5


@pytest.mark.requirement("engine-cancel")
async def test_waiting_for_a_slot_is_cancelled_at_once(engine: InferenceEngine) -> None:
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            begun = [anyio.Event() for _ in range(SLOTS)]
            for event in begun:
                tasks.start_soon(generate_until_cancelled, engine, event)
            for event in begun:
                await event.wait()
            unbegun = anyio.Event()
            with anyio.move_on_after(0.05) as scope:
                await generate_until_cancelled(engine, unbegun)
            assert scope.cancelled_caught
            assert not unbegun.is_set()
            assert running(engine) == SLOTS
            tasks.cancel_scope.cancel()
    assert running(engine) == 0


@pytest.mark.requirement("engine-slots")
async def test_more_generations_than_slots_wait_their_turn(engine: InferenceEngine) -> None:
    most = 0

    async def one() -> None:
        nonlocal most
        async with aclosing(engine.generate(COUNT, Generation(GREEDY, max_tokens=6))) as deltas:
            async for _ in deltas:
                most = max(most, running(engine))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for _ in range(SLOTS * 3):
                tasks.start_soon(one)
    assert most == SLOTS
    assert running(engine) == 0


@pytest.mark.requirement("engine-cancel")
async def test_random_cancels_leave_nothing_running(engine: InferenceEngine) -> None:
    chance = random.Random(7)

    async def one(after: float) -> None:
        with anyio.move_on_after(after):
            await generate_until_cancelled(engine, anyio.Event())

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(one, chance.uniform(0, 0.5))
    assert running(engine) == 0
    await answer(engine, COUNT, max_tokens=2)


@pytest.mark.requirement("engine-logprobs")
@pytest.mark.parametrize("prompt", [COUNT, FACT], ids=["raw", "dialog"])
async def test_logprobs_spell_the_answer(engine: InferenceEngine, prompt: Prompt) -> None:
    whole = await answer(engine, prompt, logprobs=True, max_tokens=6)
    assert b"".join(bytes(token["bytes"]) for token in whole.logprobs).decode() == whole.text
    assert all(token["logprob"] <= 0 for token in whole.logprobs)
    assert all(
        token.keys() == {"token", "logprob", "bytes", "top_logprobs"} for token in whole.logprobs
    )
    assert all(token["top_logprobs"][0]["logprob"] <= 0 for token in whole.logprobs)
    assert not (await answer(engine, prompt)).logprobs


@pytest.mark.requirement("engine-json-schema")
async def test_a_json_schema_constrains_the_answer(engine: InferenceEngine) -> None:
    whole = await answer(engine, user("Name a city."), json_schema=CITY, max_tokens=60)
    assert json.loads(whole.text).keys() == {"city"}
    assert whole.last.stop_reason is StopReason.finished_ok


@pytest.mark.requirement("engine-answer-choices")
async def test_the_answer_is_one_of_the_choices(engine: InferenceEngine) -> None:
    asked = user("Is a llama an animal?")
    fruits = [AnswerChoice("none"), AnswerChoice("some:\n", ["apple", 'a "pear"', "wasser\\öl"])]
    if "answer_choices" not in engine.capabilities:
        with pytest.raises(Unsupported):
            await answer(engine, asked, answer_choices=fruits)
        return
    for choices, said in (
        (fruits, r'none|some:\n(apple|a "pear"|wasser\\öl)(,(apple|a "pear"|wasser\\öl)){0,2}'),
        (fruits[1:], r'some:\n(apple|a "pear"|wasser\\öl)(,(apple|a "pear"|wasser\\öl)){0,2}'),
        ([AnswerChoice("🦙")], "🦙"),
        ([AnswerChoice("zebra")], "zebra"),
    ):
        whole = await answer(engine, asked, answer_choices=choices, logprobs=True, max_tokens=80)
        assert re.fullmatch(said, whole.text)
        assert whole.last.stop_reason is StopReason.finished_ok
        assert whole.logprobs
    # What shields rely on: llama.cpp tells what the model thinks all the same, vLLM what is left of it.
    likeliest, taken = (
        whole.logprobs[0]["top_logprobs"][0]["logprob"],
        whole.logprobs[0]["logprob"],
    )
    if engine.name == "llama_cpp":
        assert taken < likeliest - 1
    else:
        assert taken == likeliest


@pytest.mark.requirement("engine-stop")
async def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(engine: InferenceEngine) -> None:
    whole = (await answer(engine, COUNT, max_tokens=20)).text
    stop = whole[4:8]  # across tokens
    sampling = SamplingParams(stop=["never said", stop])
    cut = await answer(engine, COUNT, sampling=sampling, max_tokens=20)
    assert cut.text == whole[: whole.index(stop)]
    assert cut.last.stop_reason is StopReason.finished_ok
    assert running(engine) == 0


@pytest.mark.requirement("engine-continuation")
@pytest.mark.parametrize("prefix", ["1, 2, 3,", "1, 2, 3, 4, 5,"])
async def test_an_answer_is_continued(engine: InferenceEngine, prefix: str) -> None:
    asked = user("Count from 1 to 20, separated by commas.", prefix)
    whole = await answer(engine, asked, max_tokens=8)
    following = int(prefix.rstrip(",").rpartition(" ")[2]) + 1
    assert whole.text.startswith(f" {following},")


@pytest.mark.requirement("engine-sampling")
async def test_greedy_is_repeatable_and_ignores_the_temperature(engine: InferenceEngine) -> None:
    first = await answer(engine, COUNT)
    hot = sampled("greedy", temperature=5.0)
    assert (await answer(engine, COUNT, sampling=hot)).text == first.text


@pytest.mark.requirement("engine-through-the-gateway")
async def test_a_greedy_text_is_the_same_through_the_gateway(engine: InferenceEngine) -> None:
    direct = await answer(engine, FACT, max_tokens=24)
    message = Message(role=Role.user, content=FACT.messages[0].text)
    request = ChatCompletionRequest(model="m", dialog=Dialog(message=message), max_tokens=24)
    async with running_gateway(InferenceActor(engine, "m")) as gateway:
        chunks = [chunk async for chunk in gateway.stack.stream_chat_completion(request)]
    assert "".join(chunk.text_delta for chunk in chunks) == direct.text
    assert chunks[-1].stop_reason is direct.last.stop_reason


@pytest.mark.requirement("engine-cancel")
async def test_an_unread_generator_costs_nothing(engine: InferenceEngine) -> None:
    deltas = engine.generate(COUNT, Generation(GREEDY))
    await deltas.aclose()
    assert running(engine) == 0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def llama() -> AsyncIterator[InferenceEngine]:
    async with small_model(context=512, slots=1) as made:
        yield made


class TestLlamaCpp:
    """What only a real model can show."""

    @pytest.mark.requirement("engine-sampling")
    @pytest.mark.parametrize("strategy", ["top_p", "top_k"])
    async def test_a_seed_makes_sampling_repeatable(
        self, llama: InferenceEngine, strategy: str
    ) -> None:
        def with_seed(seed: int) -> Generation:
            sampling = sampled(strategy, temperature=1.5, top_k=50, seed=seed)
            return Generation(sampling, max_tokens=12)

        texts = [(await answer(llama, FACT, with_seed(seed))).text for seed in (1, 1, 2)]
        assert texts[0] == texts[1] != texts[2]

    @pytest.mark.requirement("engine-sampling")
    async def test_strategies_mean_what_they_say(self, llama: InferenceEngine) -> None:
        greedy = (await answer(llama, FACT)).text
        # One candidate is left, however hot it is: as greedy.
        one = sampled("top_k", temperature=5.0, top_k=1, seed=1)
        assert (await answer(llama, FACT, sampling=one)).text == greedy
        narrow = sampled("top_p", temperature=1.0, top_p=1e-6, seed=1)
        assert (await answer(llama, FACT, sampling=narrow)).text == greedy
        cold = sampled("top_p", temperature=0.0, seed=1)
        assert (await answer(llama, FACT, sampling=cold)).text == greedy
        # No limit at all and very hot: noise, which no hidden filter turns into sense.
        wide = sampled("top_k", temperature=100.0, top_k=0, seed=1)
        assert (await answer(llama, FACT, sampling=wide)).text != greedy

    @pytest.mark.requirement("engine-continuation")
    async def test_a_continuation_goes_on_inside_a_word(self, llama: InferenceEngine) -> None:
        whole = await answer(
            llama, user("What is the capital of France?", "The capital of France is Par")
        )
        assert whole.text.startswith("is")

    @pytest.mark.requirement("engine-continuation")
    async def test_whitespace_of_a_prefix_is_kept(self, llama: InferenceEngine) -> None:
        asked = user("Count from 1 to 9, one number a line.", "1\n2\n3\n")
        assert (await answer(llama, asked)).text.startswith("4")

    @pytest.mark.requirement("engine-text")
    async def test_characters_of_many_tokens_stay_whole(self, llama: InferenceEngine) -> None:
        whole = await answer(llama, user("Repeat exactly: 🦙🎉日本語"), max_tokens=40)
        assert "🦙🎉日本語" in whole.text
        assert "\ufffd" not in whole.text

    @pytest.mark.requirement("engine-json-schema")
    async def test_a_schema_that_cannot_be_read_is_refused(self, llama: InferenceEngine) -> None:
        for schema in ({"type": "nonsense"}, {"$ref": "#/x"}):
            with pytest.raises(InvalidRequest):
                await answer(llama, FACT, json_schema=schema)
        assert running(llama) == 0

    @pytest.mark.requirement("engine-continuation")
    async def test_what_would_be_misunderstood_is_refused(self, llama: InferenceEngine) -> None:
        ends_in_answer = Prompt(messages=[ChatMessage("user", "a"), ChatMessage("assistant", "b")])
        with pytest.raises(InvalidRequest):
            await answer(llama, ends_in_answer)


@pytest.mark.requirement("engine-dead")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_closed_engine_ends_what_runs_and_takes_nothing_new(
    kind: str, request: pytest.FixtureRequest
) -> None:
    engine = made(kind, request)
    begun = anyio.Event()
    ended = anyio.Event()

    async def use() -> None:
        with pytest.raises(EngineDead):
            await generate_until_cancelled(engine, begun)
        ended.set()

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            async with engine:
                tasks.start_soon(use)
                await begun.wait()
            await ended.wait()
    assert running(engine) == 0
    with pytest.raises(EngineDead):
        await answer(engine, COUNT)
