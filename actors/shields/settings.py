"""How the shields of a deployment are set: ``[shields]`` in its configuration."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from ...schemas import InvalidRequest, Wire

Seconds = Annotated[float, Meta(gt=0, le=600)]
Share = Annotated[float, Meta(ge=0, le=1)]
AtOnce = Annotated[int, Meta(ge=1, le=64)]


class LlamaGuardSettings(Wire, frozen=True):
    """Whom ``llama_guard`` asks; ``[shields.llama_guard]``.

    Attributes:
        model: a served language model; by default the first one of the deployment.
        seconds: how long it may take for a verdict, all tries together.
    """

    model: Annotated[str, Meta(min_length=1)] | None = None
    seconds: Seconds = 30.0


class PromptGuardSettings(Wire, frozen=True):
    """What ``prompt_guard`` finds attacks by; ``[shields.prompt_guard]``.

    Attributes:
        folder: a text classifier in ONNX with its ``tokenizer.json`` and ``config.json``; without one, rules are used.
        attacks: the labels that count as attacks; by default all but those that mean ``benign``, if there is such a one.
        max_tokens: the longest window of a text that the classifier sees, its own tokens included.
        threshold: from which score on something is a violation, where a shield's params do not say.
    """

    folder: Annotated[str, Meta(min_length=1)] | None = None
    attacks: list[str] = []
    max_tokens: Annotated[int, Meta(ge=16, le=8192)] = 512
    threshold: Share = 0.5


class CodeGuardSettings(Wire, frozen=True):
    """What looking at code may cost; ``[shields.code_guard]``.

    Attributes:
        seconds: for a piece of code.
        memory_mib: of the process that looks at it, in MiB.
        at_once: how many such processes there may be in a worker; each is kept for the next piece.
    """

    seconds: Seconds = 10.0
    memory_mib: Annotated[int, Meta(ge=256, le=1 << 16)] = 1024
    at_once: AtOnce = 2


class ShieldsConfig(Wire, frozen=True):
    """The shields of a deployment.

    Attributes:
        llama_guard: whom it asks.
        prompt_guard: what it finds attacks by.
        code_guard: what looking at code may cost.
    """

    llama_guard: LlamaGuardSettings = LlamaGuardSettings()
    prompt_guard: PromptGuardSettings = PromptGuardSettings()
    code_guard: CodeGuardSettings = CodeGuardSettings()


def check_shields(config: ShieldsConfig) -> None:
    """Refuse what types cannot tell.

    Raises:
        InvalidRequest: something is wrong; the message names the entry.
    """
    guard = config.prompt_guard
    if guard.attacks and guard.folder is None:
        raise InvalidRequest(
            "shields.prompt_guard.attacks: they are labels of a classifier; name its `folder`"
        )
    if len(set(guard.attacks)) < len(guard.attacks):
        raise InvalidRequest("shields.prompt_guard.attacks: a label is named twice")
