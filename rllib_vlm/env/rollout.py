"""The slot loop: every simulator goes at its own pace, and whatever prompts are ready are answered together.

One slot, round and round::

    reset --> render prompt --> generate --> parse --> turn --> render prompt --> ... --> next episode
                                   |                     |
                             (or the expert)     (failed: play it again elsewhere)

Only slots that are ready move on. A backend that answers batches is given what is ready once no simulator is likely to
come back at once: prompts wait for `batch_wait_s` at most, and not at all for a simulator that has been at it for
longer than that. An engine that joins requests to those under way gets each at once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_vlm.backends.base import GenerationBackend, GenerationRequest
from rllib_vlm.core.columns import FINAL_PROMPT
from rllib_vlm.env.bell import Bell
from rllib_vlm.env.play import Play, RolloutSettings
from rllib_vlm.env.slots import SlotFailure, SlotPool, SlotStep
from rllib_vlm.env.tasks import GroupQueue, Member
from rllib_vlm.errors import LostTurnError, SimulatorError
from rllib_vlm.types import Completion, ParsedAction, Prompt

EventHook = Callable[[str, SingleAgentEpisode, int], None]
EpisodeQueue = GroupQueue[SingleAgentEpisode]
_WAIT_S = 0.5


class PromptRendering(Protocol):
    def __call__(self, episodes: Sequence[SingleAgentEpisode]) -> list[Prompt]: ...


class AnswerParsing(Protocol):
    def __call__(
        self, completions: Sequence[Completion], episodes: Sequence[SingleAgentEpisode]
    ) -> list[ParsedAction]: ...


@dataclass(slots=True)
class RolloutCounts:
    """What happened during one run of the loop; seconds of wall clock where a name ends in `_s`."""

    crashes: int = 0
    timeouts: int = 0
    lost_turns: int = 0
    turns: int = 0
    actions: int = 0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    render_s: float = 0.0
    generate_s: float = 0.0
    simulate_s: float = 0.0
    failures: list[str] = field(default_factory=list)
    backend: dict[str, int] = field(default_factory=dict)  # what the generation backend counted


class Rollout:
    """Plays the episodes of a queue.

    `run` plays all to their end. `play` may leave some under way, for a queue that has all it wants; they keep their
    slots and go on with the next `play`, by the weights that the backend has then.

    Args:
        pool: the simulators.
        backend: generates completions.
        render: prompts of episodes that wait for an answer (the env-to-module pipeline).
        parse: what completions mean (the module-to-env pipeline).
        settings: of episodes that begin; see there.
        on_event: called with "on_episode_created", "_start", "_step" and "_end", the episode and its slot.
    """

    def __init__(
        self,
        *,
        pool: SlotPool,
        backend: GenerationBackend,
        render: PromptRendering,
        parse: AnswerParsing,
        settings: RolloutSettings,
        on_event: EventHook,
    ) -> None:
        self._pool = pool
        self._backend = backend
        self._render = render
        self._parse = parse
        self.settings = settings
        self._on_event = on_event
        self.counts = RolloutCounts()
        self._idle = deque(range(len(pool)))
        self._plays: dict[int, Play] = {}
        self._generating: dict[int, Future[Completion]] = {}
        # When the simulators that are busy were told to go on, and when the prompts that wait began to; monotonic.
        self._simulating: dict[int, float] = {}
        self._waiting_since = 0.0
        self._bell = Bell() if backend.continuous else None

    @property
    def num_under_way(self) -> int:
        """Episodes that have begun and are not over."""
        return len(self._plays)

    def run(self, queue: EpisodeQueue) -> list[SingleAgentEpisode]:
        """All episodes of the queue, group by group; nothing is under way afterwards.

        Raises:
            SimulatorError: simulators fail so persistently that no group can be finished.
        """
        try:
            return self.play(queue)
        finally:  # members of groups that were given up, or everything after an error
            self.close()

    def play(self, queue: EpisodeQueue) -> list[SingleAgentEpisode]:
        """What the queue wants, as soon as it is there.

        Raises:
            SimulatorError: simulators fail so persistently that no group can be finished.
        """
        self.counts = RolloutCounts()
        before = dict(self._backend.counts())
        self._play_all(queue)
        after = self._backend.counts()
        self.counts.backend = {name: count - before.get(name, 0) for name, count in after.items()}
        return queue.episodes()

    def close(self) -> None:
        """Gives up what is under way; plays nothing more."""
        for future in self._generating.values():
            future.cancel()
        for slot in list(self._plays):
            self._pool.cancel(slot)
            self._leave(slot)
        self._generating.clear()
        if self._bell is not None:
            self._bell.close()

    def _play_all(self, queue: EpisodeQueue) -> None:
        idle = self._idle
        limit = 100 + 10 * len(self._pool)
        while not queue.done:
            self._start_idle(idle, queue)
            ready: list[int] = []
            for slot, outcome in self._simulated():
                if isinstance(outcome, SlotFailure):
                    self._lose(slot, outcome, queue)
                elif not queue.is_dropped(self._plays[slot].member):
                    if not self._receive(slot, outcome):
                        ready.append(slot)
                        continue
                    queue.finish(self._plays[slot].member, self._plays[slot].episode)
                self._leave(slot)
                idle.append(slot)
            self._start_idle(idle, queue)  # before generating: their simulators work meanwhile
            self._ask(ready)
            answered, over = self._answered(queue)
            for slot in over:
                self._leave(slot)
                idle.append(slot)
            self._act(answered)
            if queue.num_replaced > limit:
                raise SimulatorError(
                    f"{queue.num_replaced} groups could not be finished; the last failures: "
                    + "; ".join(self.counts.failures[-3:])
                )

    def _simulated(self) -> list[tuple[int, SlotStep | SlotFailure]]:
        """Outcomes of the simulators that are ready, waiting for one as long as there is nothing else to do."""
        if self._bell is not None:
            start, only_generates = time.perf_counter(), not self._simulating
            outcomes = self._pool.poll(_WAIT_S, self._bell.connection)
            if only_generates:
                self.counts.generate_s += time.perf_counter() - start
        else:
            outcomes = self._pool.poll(min(_WAIT_S, self._batch_wait()) if self._generating else _WAIT_S)
        for slot, _ in outcomes:
            del self._simulating[slot]
        return outcomes

    def _batch_wait(self) -> float:
        """Seconds that the prompts may go on waiting for simulators: until none is likely to be back soon."""
        if not self._simulating:
            return 0.0
        since = min(self._waiting_since, max(self._simulating.values()))
        return max(0.0, since + self.settings.batch_wait_s - time.monotonic())

    def _leave(self, slot: int) -> None:
        self._simulating.pop(slot, None)
        self._backend.end_session(self._plays.pop(slot).episode.id_)

    def _start_idle(self, idle: deque[int], queue: EpisodeQueue) -> None:
        while idle and (member := queue.take()) is not None:
            self._start(idle.popleft(), member)

    def _start(self, slot: int, member: Member) -> None:
        settings = self.settings
        play = self._plays[slot] = Play(member, settings)
        self._on_event("on_episode_created", play.episode, slot)
        self._simulating[slot] = time.monotonic()
        self._pool.reset(
            slot,
            seed=member.task.seed,
            options={"split": member.task.split, **settings.options, **member.options},
            expert_max_actions=settings.max_actions if settings.demonstrations is not None else 0,
        )

    def _lose(self, slot: int, failure: SlotFailure, queue: EpisodeQueue) -> None:
        if failure.kind == "timeout":
            self.counts.timeouts += 1
        elif failure.kind == "engine":
            self.counts.lost_turns += 1
        else:
            self.counts.crashes += 1
        self.counts.failures.append(failure.message.strip().splitlines()[-1][:500])
        queue.fail(self._plays[slot].member)

    def _receive(self, slot: int, step: SlotStep) -> bool:
        """Takes a reset or a turn into the episode; True if that is over."""
        play = self._plays[slot]
        self.counts.simulate_s += step.wall_s
        is_turn = play.episode.is_reset
        over = play.receive(step)
        if is_turn and play.parsed is not None:
            self.counts.turns += 1
            self.counts.actions += len(play.parsed.actions)
        self._on_event("on_episode_step" if is_turn else "on_episode_start", play.episode, slot)
        if over and len(play.episode):
            if self.settings.render_final and not play.episode.is_terminated:
                play.episode.custom_data[FINAL_PROMPT] = self._rendered([play.episode])[0]
            self._on_event("on_episode_end", play.episode, slot)
        return over

    def _rendered(self, episodes: Sequence[SingleAgentEpisode]) -> list[Prompt]:
        start = time.perf_counter()
        prompts = self._render(episodes)
        self.counts.render_s += time.perf_counter() - start
        return prompts

    def _ask(self, slots: list[int]) -> None:
        """Renders the prompts of ready slots; the policy's go to the backend, the expert answers at once."""
        if not slots:
            return
        expert_acts = []
        for slot, prompt in zip(slots, self._rendered([self._plays[s].episode for s in slots]), strict=True):
            play = self._plays[slot]
            play.prompt, play.answer = prompt, play.expert_answer
            if play.answer is not None:
                expert_acts.append(slot)
                continue
            if not self._generating:
                self._waiting_since = time.monotonic()
            request = GenerationRequest(
                prompt=prompt, sampling=play.draw_sampling(), session=play.episode.id_
            )
            self._generating[slot] = self._backend.submit(request)
            if self._bell is not None:
                self._generating[slot].add_done_callback(self._bell.ring)
        self._act(expert_acts)

    def _answered(self, queue: EpisodeQueue) -> tuple[list[int], list[int]]:
        """Slots whose completions are there, and those whose episodes are over: given up, or without an answer.

        A backend that answers batches works for them now, if it is time to.
        """
        if self._bell is not None:
            self._bell.hush()
        elif self._generating and self._batch_wait() == 0:
            start = time.perf_counter()
            self._backend.poll()
            self.counts.generate_s += time.perf_counter() - start
        done = [slot for slot, future in self._generating.items() if future.done()]
        answered: list[int] = []
        over: list[int] = []
        for slot in done:
            play = self._plays[slot]
            try:
                play.answer = self._generating.pop(slot).result()
            except LostTurnError as error:
                self._lose(slot, SlotFailure("engine", str(error)), queue)
                over.append(slot)
                continue
            self.counts.generated_tokens += len(play.answer.token_ids)
            assert play.prompt is not None
            self.counts.prompt_tokens += len(play.prompt.token_ids)
            (over if queue.is_dropped(play.member) else answered).append(slot)
        return answered, over

    def _act(self, slots: list[int]) -> None:
        """Has the simulators carry out what was answered; an answer that says nothing readable is an idle turn."""
        if not slots:
            return
        plays = [self._plays[slot] for slot in slots]
        answers = [play.answer for play in plays if play.answer is not None]
        for play, meaning in zip(plays, self._parse(answers, [p.episode for p in plays]), strict=True):
            play.parsed = meaning
        for slot, play in zip(slots, plays, strict=True):
            assert play.parsed is not None
            self._simulating[slot] = time.monotonic()
            self._pool.turn(slot, play.parsed.actions if play.parsed.valid else (), play.said())
