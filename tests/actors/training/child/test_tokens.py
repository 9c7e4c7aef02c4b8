from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ayllu.actors.training.child.tokens import IGNORED, Encoder, Tokens
from ayllu.schemas import InvalidRequest

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    + CHATML
)
LLAMA3 = (
    "{{ '<|begin|>' }}{% for m in messages %}"
    "{{ '<|head|>' + m['role'] + '<|/head|>\n\n' + m['content'] | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + '</s>' }}{% endif %}{% endfor %}"
)
PLAIN = (
    "{% for m in messages %}{{ '### ' + m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant: ' }}{% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}{% if m['role'] == 'user' or loop.last %}{{ m['content'] + '<|eot|>' }}"
    "{% endif %}{% endfor %}"
)
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin|>",
    "<|head|>",
    "<|/head|>",
    "<|eot|>",
    "</s>",
]
DIALOG = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello you"},
    {"role": "user", "content": "And?"},
    {"role": "assistant", "content": "\nNothing <3"},
]

Coder = Callable[[str | None], tuple[Encoder, PreTrainedTokenizerFast]]


@pytest.fixture(scope="module")
def coder() -> Coder:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        special_tokens=SPECIAL, initial_alphabet=alphabet, vocab_size=300, show_progress=False
    )
    tokenizer.train_from_iterator(["Hello you hello\n\nNothing\n\n"] * 9, trainer)

    def make(template: str | None) -> tuple[Encoder, PreTrainedTokenizerFast]:
        made: Any = PreTrainedTokenizerFast
        fast: PreTrainedTokenizerFast = made(
            tokenizer_object=tokenizer,
            eos_token="<|endoftext|>",
            additional_special_tokens=SPECIAL,
        )
        fast.chat_template = template
        return Encoder(fast), fast

    return make


def trained(tokens: Tokens, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Return the texts of the runs of tokens that are trained on."""
    runs: list[list[int]] = [[]]
    for token, label in zip(tokens.input_ids, tokens.labels, strict=True):
        assert label in (token, IGNORED)
        if label == IGNORED:
            runs.append([])
        else:
            runs[-1].append(token)
    return [str(tokenizer.decode(run)) for run in runs if run]


@pytest.mark.requirement("child-assistant-only")
@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, ["Hello you<|im_end|>", "\nNothing <3<|im_end|>"]),
        (DEFAULT_SYSTEM, ["Hello you<|im_end|>", "\nNothing <3<|im_end|>"]),
        (LLAMA3, ["Hello you<|eot|>", "Nothing <3<|eot|>"]),
        (MISTRAL, [" Hello you</s>", " \nNothing <3</s>"]),
        (PLAIN, ["Hello you\n", "\nNothing <3\n"]),
    ],
    ids=["chatml", "default system prompt", "llama 3", "mistral", "no special tokens"],
)
def test_what_the_assistant_says_with_its_end_is_trained_on_and_nothing_else(
    coder: Coder, template: str, expected: list[str]
) -> None:
    encoder, tokenizer = coder(template)
    tokens = encoder.tokens({"messages": DIALOG})
    found = trained(tokens, tokenizer)
    # A token that reaches from the prompt into the answer, such as one of two line breaks, is the answer's too.
    assert len(found) == len(expected)
    for text, wanted in zip(found, expected, strict=True):
        assert text in (wanted, "\n" + wanted)
    assert tokenizer.decode(tokens.input_ids) == tokenizer.apply_chat_template(
        DIALOG, tokenize=False
    )


@pytest.mark.requirement("child-assistant-only")
def test_a_template_that_renders_beginnings_differently_is_refused(coder: Coder) -> None:
    encoder, _ = coder(FORGETFUL)
    with pytest.raises(InvalidRequest, match="renders the beginning of a dialog differently"):
        encoder.tokens({"messages": DIALOG})


@pytest.mark.requirement("child-assistant-only")
@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (None, DIALOG, "no chat template"),
        (CHATML, DIALOG[:1], "the assistant says nothing"),
        ("{{ raise_exception('only in turns') }}", DIALOG, "refuses the dialog: only in turns"),
    ],
)
def test_a_dialog_that_cannot_be_trained_on_is_refused(
    coder: Coder, template: str | None, messages: list[dict[str, str]], message: str
) -> None:
    encoder, _ = coder(template)
    with pytest.raises(InvalidRequest, match=message):
        encoder.tokens({"messages": messages})


@pytest.mark.requirement("child-assistant-only")
def test_a_dialog_may_begin_with_the_assistant(coder: Coder) -> None:
    encoder, tokenizer = coder(CHATML)
    [text] = trained(encoder.tokens({"messages": DIALOG[1:2]}), tokenizer)
    assert text.endswith("Hello you<|im_end|>")


@pytest.mark.requirement("child-completion-only")
def test_of_a_prompt_and_its_completion_the_completion_and_its_end_are_trained_on(
    coder: Coder,
) -> None:
    encoder, tokenizer = coder(None)
    tokens = encoder.tokens({"prompt": "2 + 2 = ", "completion": "4"})
    assert trained(tokens, tokenizer) == ["4<|endoftext|>"]
    assert tokenizer.decode(tokens.input_ids) == "2 + 2 = 4<|endoftext|>"


@pytest.mark.requirement("child-completion-only")
def test_all_of_a_text_is_trained_on(coder: Coder) -> None:
    encoder, tokenizer = coder(None)
    tokens = encoder.tokens({"text": "Hello you"})
    assert trained(tokens, tokenizer) == ["Hello you<|endoftext|>"]
    assert encoder.tokens({"text": "Hello you<|endoftext|>"}) == tokens


@pytest.mark.requirement("child-completion-only")
@pytest.mark.parametrize("conversational", [True, False])
def test_a_pair_shares_its_prompt(coder: Coder, conversational: bool) -> None:
    encoder, tokenizer = coder(CHATML)
    example: dict[str, Any] = {"prompt": "1?", "chosen": "Yes", "rejected": "No"}
    prompt, end = "1?", "<|endoftext|>"
    if conversational:
        prompt, end = "<|im_start|>user\n1?<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n"
        example = {
            "prompt": [{"role": "user", "content": "1?"}],
            "chosen": [{"role": "assistant", "content": "Yes"}],
            "rejected": [{"role": "assistant", "content": "No"}],
        }
    pair = encoder.pair(example)
    assert tokenizer.decode(pair.prompt_ids) == prompt
    assert tokenizer.decode(pair.chosen_ids) == f"Yes{end}"
    assert tokenizer.decode(pair.rejected_ids) == f"No{end}"


@pytest.mark.requirement("child-reward")
@pytest.mark.parametrize("template", [CHATML, DEFAULT_SYSTEM, LLAMA3, MISTRAL, PLAIN])
def test_a_reward_model_learns_from_what_it_is_asked(coder: Coder, template: str) -> None:
    encoder, fast = coder(template)
    asked = [{"role": "user", "content": "Hi"}]
    dialogs = {
        answer: [*asked, {"role": "assistant", "content": answer}] for answer in ("Hello", "No")
    }
    found = encoder.comparison({"prompt": "Hi", "chosen": "Hello", "rejected": "No"})
    for ids, dialog in zip(found, dialogs.values(), strict=True):
        made: Any = fast.apply_chat_template(dialog, tokenize=True, return_dict=True)
        assert ids == made["input_ids"] == encoder.whole(dialog)
    again = {name: dialogs[said][1:] for name, said in (("chosen", "Hello"), ("rejected", "No"))}
    assert encoder.comparison({"prompt": asked, **again}) == found


@pytest.mark.requirement("child-reward")
def test_answers_that_become_the_same_tokens_are_refused(coder: Coder) -> None:
    encoder, _ = coder(LLAMA3)
    with pytest.raises(InvalidRequest, match="chosen and rejected alike"):
        encoder.comparison({"prompt": "Hi", "chosen": "Yes", "rejected": " Yes"})
