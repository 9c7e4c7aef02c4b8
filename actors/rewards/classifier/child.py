"""The process of a classification model: ``python -m ayllu.actors.rewards.classifier.child FD``, a socket of its engine's.

Dialogs become tokens by the model's own chat template, and go through it in batches of like length, padded on the right, in
float32: what a batch has beside an answer does not change its score. None is cut.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from ....bus.lifeline import die_with_parent
from ....schemas import AylluError, ContextLengthExceeded, EngineError, encode
from .batching import Item, Waiting
from .protocol import (
    Failed,
    Forget,
    FromChild,
    Load,
    Ready,
    Refused,
    Scored,
    ToChild,
    Wanted,
    to_child,
)

LOOKED_AT = 256
"""How many messages become tokens between two batches, at most."""


class Link:
    """The socket; a thread reads it, and ends the process with it."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._lines = self._socket.makefile("rb")
        self._unread: queue.SimpleQueue[ToChild] = queue.SimpleQueue()
        self.forgotten: set[int] = set()
        """The calls that were given up; known as soon as it is told, whatever came before is still unread."""

    def first(self) -> ToChild:
        """Return the first message, and read the others from now on."""
        message = to_child.decode(self._lines.readline())
        threading.Thread(target=self._read, name="engine", daemon=True).start()
        return message

    def _read(self) -> None:
        try:
            for line in self._lines:
                message = to_child.decode(line)
                if isinstance(message, Forget):
                    self.forgotten.add(message.call)
                self._unread.put(message)
        finally:
            os._exit(0)

    def unread(self, *, wait: bool) -> Iterator[ToChild]:
        """Yield the messages that are there, up to a limit; with ``wait``, at least one."""
        for number in range(LOOKED_AT):
            try:
                yield self._unread.get(block=wait and number == 0)
            except queue.Empty:
                return

    def tell(self, *messages: FromChild) -> None:
        """Tell the engine."""
        self._socket.sendall(b"".join(encode(message) + b"\n" for message in messages))


class Scorer:
    """A model that is loaded.

    Args:
        load: what to load.

    Raises:
        AylluError: it cannot be loaded; the message says why.
    """

    def __init__(self, load: Load) -> None:
        from ...training.child.tokens import Encoder
        from .loading import context_of
        from .loading import load as load_model

        self._model, tokenizer = load_model(load)
        self._encoder = Encoder(tokenizer)
        self._device = load.device
        self._text: Any = self._model.config.get_text_config()
        self._pad: int | None = self._text.pad_token_id
        self.context = context_of(self._model, tokenizer, load.max_length)

    def tokens(self, wanted: Wanted) -> list[int]:
        """Return the tokens of a dialog with its answer.

        Raises:
            InvalidRequest: the chat template refuses it.
            ContextLengthExceeded: it is too long.
        """
        ids = self._encoder.whole(
            [{"role": said.role, "content": said.content} for said in wanted.messages]
        )
        if self.context and len(ids) > self.context:
            raise ContextLengthExceeded(
                f"the dialog with its answer has {len(ids)} tokens, the model reads {self.context}"
            )
        return ids

    def scores(self, batch: Sequence[Item]) -> list[float]:
        """Return the scores of a batch."""
        import torch

        longest = max(len(item.ids) for item in batch)
        pad = self._pad_for(batch)
        ids = [item.ids + [pad] * (longest - len(item.ids)) for item in batch]
        mask = [[1] * len(item.ids) + [0] * (longest - len(item.ids)) for item in batch]
        with torch.inference_mode():
            logits = self._model(
                input_ids=torch.tensor(ids, device=self._device),
                attention_mask=torch.tensor(mask, device=self._device),
            ).logits
        found: list[float] = logits.float().reshape(-1).tolist()
        return found

    def _pad_for(self, batch: Sequence[Item]) -> int:
        """Return what pads; models that read one token find it by what it is not."""
        if self._pad is not None:
            return self._pad
        # Without one, transformers reads the last token and takes no batches. With any that is nobody's last it does both.
        last = {item.ids[-1] for item in batch if item.ids}
        unused = next(number for number in range(self._text.vocab_size) if number not in last)
        self._text.pad_token_id = unused
        return unused


def serve(link: Link, scorer: Scorer, waiting: Waiting) -> None:
    """Score what comes, for ever."""
    while True:
        for message in link.unread(wait=not waiting):
            if isinstance(message, Forget):
                waiting.forget(message.call)
                link.forgotten.discard(message.call)
            elif isinstance(message, Wanted) and message.call not in link.forgotten:
                ids = _tokens(scorer, message)
                if isinstance(ids, AylluError):
                    link.tell(Refused(message.call, message.index, ids.info))
                else:
                    waiting.add(Item(message.call, message.index, ids))
        for call in list(link.forgotten):
            waiting.forget(call)
        if waiting:
            link.tell(*_outcomes(scorer, waiting.next_batch()))


def _tokens(scorer: Scorer, wanted: Wanted) -> list[int] | AylluError:
    try:
        return scorer.tokens(wanted)
    except AylluError as error:
        return error
    except Exception as error:
        # A template and a tokenizer are programs of others, and an answer is anybody's: it costs nobody else a score.
        traceback.print_exc()
        return EngineError(f"it cannot be made into tokens: {type(error).__name__}")


def _outcomes(scorer: Scorer, batch: Sequence[Item]) -> list[FromChild]:
    try:
        scores = scorer.scores(batch)
    except Exception as error:
        # Of a batch that does not fit into the memory, another one may.
        traceback.print_exc()
        failed = EngineError(f"the reward model failed on it: {type(error).__name__}").info
        return [Refused(item.call, item.index, failed) for item in batch]
    no_number = EngineError("its score is no number: the model is broken").info
    return [
        Scored(item.call, item.index, score)
        if math.isfinite(score)
        else Refused(item.call, item.index, no_number)
        for item, score in zip(batch, scores, strict=True)
    ]


def main() -> None:
    """Load what the engine says, and score until it hangs up."""
    if sys.platform != "linux":
        die_with_parent()
    # It recommends a package for one of its kernels whenever it is imported, also to those who never use it.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    link = Link(int(sys.argv[1]))
    load = link.first()
    assert isinstance(load, Load)
    try:
        scorer = Scorer(load)
    except AylluError as error:
        link.tell(Failed(error.info))
        return
    except Exception as error:
        traceback.print_exc()
        why = f"the reward model cannot be loaded ({type(error).__name__}); the worker's log says more"
        link.tell(Failed(EngineError(why).info))
        return
    link.tell(Ready(scorer.context))
    serve(link, scorer, Waiting(load.batch_size))


if __name__ == "__main__":
    main()
