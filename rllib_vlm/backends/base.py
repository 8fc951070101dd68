"""What generates completions: the in-process model, an engine, or a script."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rllib_vlm.models.base import VLMFamily
from rllib_vlm.types import Completion, FinishReason, Prompt, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """`session` names the conversation a prompt goes on with, if it does; it tells where to look, not what to find.

    `sampling.seed` is of this request alone: the same weights, prompt and seed are answered alike, up to the rounding
    of floats, whatever other requests are answered beside it.
    """

    prompt: Prompt
    sampling: SamplingParams
    session: Hashable | None = None


class GenerationBackend(Protocol):
    """Requests finish independently: submit what is ready, poll, look at the futures.

    Attributes:
        continuous: whether an engine that runs by itself joins each request to those under way, at once; another
            thread then completes the futures, and `poll` only waits. Otherwise `poll` answers what waits, in the
            caller's thread and in one batch, so a caller gathers before it polls.
    """

    continuous: bool

    def submit(self, request: GenerationRequest) -> Future[Completion]: ...

    def poll(self, timeout_s: float | None = None) -> None:
        """Works (or waits) until at least one submitted future is done, or the time is over."""

    def load_weights(self, state: Mapping[str, Tensor], *, version: int) -> None:
        """New weights for every completion that is submitted from now on."""

    def end_session(self, session: Hashable) -> None:
        """The conversation is over: what was kept of it is freed."""

    def counts(self) -> Mapping[str, int]:
        """What was counted since the backend was made, by the names under which runners report it."""

    def sleep(self) -> None:
        """Frees the GPU, as far as it can, until `wake_up`; weights may be loaded meanwhile. May be called again."""

    def wake_up(self) -> None:
        """Ready to answer again."""

    def close(self) -> None: ...


def completed(
    family: VLMFamily,
    token_ids: NDArray[np.int64],
    logprobs: NDArray[np.float32],
    sampling: SamplingParams,
    *,
    version: int,
) -> Completion:
    """What was sampled, as a completion with its text and why it ended."""
    text = family.decode(token_ids)
    stopped = len(token_ids) > 0 and int(token_ids[-1]) in family.stop_token_ids
    stopped = stopped or any(string in text for string in sampling.stop)
    reason: FinishReason = "stop" if stopped else "length"
    return Completion(
        token_ids=token_ids, logprobs=logprobs, policy_version=version, finish_reason=reason, text=text
    )
