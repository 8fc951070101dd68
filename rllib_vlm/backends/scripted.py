"""Answers from a script: for demonstrations, and for tests of everything around a model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future

import numpy as np
from torch import Tensor

from rllib_vlm.backends.base import GenerationRequest
from rllib_vlm.errors import ModelError
from rllib_vlm.models.base import VLMFamily
from rllib_vlm.types import Completion, Prompt

Script = Callable[[Prompt], str] | Sequence[str]


class ScriptedBackend:
    """Says what it is told, in the family's own tokens.

    Log-probs are 0: the script is certain of its answers. (They are no model's log-probs; a
    learner that weighs this data by importance must compute its own.)

    Args:
        family: encodes the answers.
        script: a function of the prompt, or texts that are said in turn, from the start again
            after the last.
    """

    continuous = False

    def __init__(self, family: VLMFamily, script: Script) -> None:
        if not callable(script) and not script:
            raise ModelError("a script needs at least one answer, or a function that gives them")
        self.family = family
        self.version = 0
        self._script = script
        self._said = 0
        self._waiting: list[tuple[GenerationRequest, Future[Completion]]] = []
        self._closed = False

    def submit(self, request: GenerationRequest) -> Future[Completion]:
        """Queues a request until the next `poll`.

        Raises:
            ModelError: the backend is closed.
        """
        if self._closed:
            raise ModelError("the generation backend is closed; submit to a new one")
        future: Future[Completion] = Future()
        self._waiting.append((request, future))
        return future

    def poll(self, timeout_s: float | None = None) -> None:
        """Answers everything that waits, in the order it was submitted."""
        waiting, self._waiting = self._waiting, []
        for request, future in waiting:
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._answer(request))
            except Exception as error:  # noqa: BLE001 - the script's own mistake, found in the future
                future.set_exception(error)

    def load_weights(self, state: Mapping[str, Tensor], *, version: int) -> None:
        """Takes the version; a script has no weights."""
        self.version = version

    def end_session(self, session: Hashable) -> None:
        """A script remembers nothing."""

    def counts(self) -> Mapping[str, int]:
        """A script reads no prompt."""
        return {}

    def sleep(self) -> None:
        """A script takes no GPU."""

    def wake_up(self) -> None:
        """A script is always ready."""

    def close(self) -> None:
        """Cancels what waits; later calls of `submit` fail."""
        self._closed = True
        for _, future in self._waiting:
            future.cancel()
        self._waiting = []

    def _answer(self, request: GenerationRequest) -> Completion:
        if callable(self._script):
            text = self._script(request.prompt)
        else:
            text = self._script[self._said % len(self._script)]
            self._said += 1
        ids = self.family.encode_answer(text)
        limit = request.sampling.max_new_tokens
        cut = len(ids) > limit
        ids = ids[:limit]
        return Completion(
            token_ids=ids,
            logprobs=np.zeros(len(ids), dtype=np.float32),
            policy_version=self.version,
            finish_reason="length" if cut else "stop",
            text=self.family.decode(ids),
        )
