"""Generation by the model in this process: all waiting prompts in one batch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from rllib_vlm.backends.base import GenerationRequest, completed
from rllib_vlm.errors import ModelError, did_you_mean
from rllib_vlm.models.base import VLMFamily
from rllib_vlm.models.precision import Precision
from rllib_vlm.models.sessions import SessionCache
from rllib_vlm.types import Completion, SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class HFSettings:
    """Options of `HFBackend`.

    Args:
        max_batch_size: prompts of one batch; bounds memory.
        session_cache_mib: MiB of keys and values, on the model's device, kept of conversations between their turns,
            so that a turn costs what is new and not all that has been said; 0 keeps none. Each token takes
            2 x layers x key heads x head width numbers, and on a CPU there may be room for half as many more.
        prompt_precision: of the matrix products that read pictures and prompts: "float32"; "bfloat16", which puts
            log-probs off by about a percent; or "auto", which is that where the device multiplies it in hardware.

    Raises:
        ModelError: a value out of its range.
    """

    max_batch_size: int = 64
    session_cache_mib: float = 0
    prompt_precision: Precision = "float32"

    def __post_init__(self) -> None:
        size = self.max_batch_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ModelError(f"max_batch_size is {size!r}; give 1 or more")
        SessionCache(self.session_cache_mib)  # refuses what is no budget
        known = get_args(Precision)
        if self.prompt_precision not in known:
            near = did_you_mean(str(self.prompt_precision), known)
            raise ModelError(
                f"prompt_precision is {self.prompt_precision!r}.{near} Known: {', '.join(known)}"
            )


class HFBackend:
    """Runs `family.generate` on whatever has been submitted since the last `poll`.

    Args:
        family: the model. It may be the very one that another part of the process trains.
        **options: fields of `HFSettings`.

    Requests without a seed are sampled from torch's own stream.
    """

    continuous = False
    options = HFSettings

    def __init__(self, family: VLMFamily, **options: Any) -> None:
        self.settings = HFSettings(**options)
        self.family = family
        self.cache = SessionCache(self.settings.session_cache_mib)
        # The version stamped on completions. Whoever changes shared weights in place sets it.
        self.version = 0
        self._waiting: list[tuple[GenerationRequest, Future[Completion]]] = []
        self._closed = False
        self._home: torch.device | None = None  # where the model goes back to, while it is asleep

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
        """Answers everything that waits; the time limit has nothing to cut, since nothing is waited for.

        An error of a batch becomes the exception of its futures; other batches go on.
        """
        waiting, self._waiting = self._waiting, []
        batches: dict[tuple[object, ...], list[tuple[GenerationRequest, Future[Completion]]]] = {}
        for request, future in waiting:
            if future.set_running_or_notify_cancel():
                batches.setdefault(_key(request.sampling), []).append((request, future))
        for same in batches.values():
            size = self.settings.max_batch_size
            for start in range(0, len(same), size):
                self._answer(same[start : start + size])

    def load_weights(self, state: Mapping[str, Tensor], *, version: int) -> None:
        """Copies `state` into the model; requests that still wait are answered by the new weights.

        Raises:
            ModelError: names or shapes differ from the model's.
        """
        own = self.family.model.state_dict(keep_vars=True)
        for name, value in state.items():
            if name not in own:
                raise ModelError(f"the model has no weights {name!r}.{did_you_mean(name, own)}")
            if own[name].shape != value.shape:
                raise ModelError(
                    f"weights {name!r} have shape {tuple(value.shape)}, the model's {tuple(own[name].shape)}"
                )
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(value)
        self.version = version
        self.cache.clear()

    def end_session(self, session: Hashable) -> None:
        """Frees what is kept of a conversation, if anything is."""
        self.cache.end(session)

    def counts(self) -> Mapping[str, int]:
        """Prompt tokens that were computed, and that were not because their keys and values were there."""
        return {
            "num_prefill_tokens": self.cache.computed,
            "num_prefill_tokens_reused": self.cache.reused,
        }

    def sleep(self) -> None:
        """The model waits in this machine's memory, and what was kept of conversations is forgotten."""
        if self._home is None:
            self._home = next(self.family.model.parameters()).device
            self.cache.clear()
            self.family.model.to("cpu")
            if self._home.type == "cuda":
                torch.cuda.empty_cache()

    def wake_up(self) -> None:
        """The model is where it was."""
        if self._home is not None:
            self.family.model.to(self._home)
            self._home = None

    def close(self) -> None:
        """Cancels what waits and frees what is kept; later calls of `submit` fail."""
        self._closed = True
        for _, future in self._waiting:
            future.cancel()
        self._waiting = []
        self.cache.clear()

    def _answer(self, batch: Sequence[tuple[GenerationRequest, Future[Completion]]]) -> None:
        sampling = batch[0][0].sampling
        version = self.version
        try:
            self.cache.of_weights(self.family.model)
            answers = self.family.generate(
                [r.prompt for r, _ in batch],
                sampling,
                [r.sampling.seed for r, _ in batch],
                cache=self.cache,
                sessions=[r.session for r, _ in batch],
                precision=self.settings.prompt_precision,
            )
            completions = [
                completed(self.family, ids, logprobs, sampling, version=version) for ids, logprobs in answers
            ]
        except Exception as error:  # noqa: BLE001 - the caller finds it in each future, whatever it is
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), completion in zip(batch, completions, strict=True):
            future.set_result(completion)


def _key(sampling: SamplingParams) -> tuple[object, ...]:
    """Requests with equal keys can share a batch."""
    return (sampling.temperature, sampling.top_p, sampling.max_new_tokens, tuple(sampling.stop))
