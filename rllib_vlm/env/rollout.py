"""The slot loop: every simulator goes at its own pace, all prompts that wait are answered together.

One slot, round and round::

    reset --> render prompt --> generate --> parse --> turn --> render prompt --> ... --> next episode
                                   |                     |
                             (or the expert)     (failed: play it again elsewhere)

Only slots that are ready move on; nothing waits for a slow reset, and no completion is generated
that is not acted on.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_vlm.backends.base import GenerationBackend, GenerationRequest
from rllib_vlm.core.columns import FINAL_PROMPT, GROUP, METRICS, SUCCESS, TASK_SEED, VLMColumns
from rllib_vlm.env.slots import SlotFailure, SlotPool, SlotStep
from rllib_vlm.env.tasks import GroupQueue, Member
from rllib_vlm.errors import SimulatorError
from rllib_vlm.prompts.answer import STOP_TOKENS, answer_end
from rllib_vlm.types import Completion, Demonstration, ParsedAction, Prompt, Said, SamplingParams, Turn

Mixing = Literal["turn", "episode"]
EventHook = Callable[[str, SingleAgentEpisode, int], None]
EpisodeQueue = GroupQueue[SingleAgentEpisode]
_WAIT_S = 0.5
# A turn's prompt with what its last n images show, and the turns of the questions that follow its answer.
Lesson = Callable[[Demonstration, Prompt, Completion, int], tuple[Prompt, list[Turn]]]


class PromptRendering(Protocol):
    def __call__(self, episodes: Sequence[SingleAgentEpisode]) -> list[Prompt]: ...


class AnswerParsing(Protocol):
    def __call__(
        self, completions: Sequence[Completion], episodes: Sequence[SingleAgentEpisode]
    ) -> list[ParsedAction]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DemonstrationSettings:
    """How demonstrations are collected: the expert labels every state, and who acts is drawn.

    Source: DAgger (Ross, Gordon, Bagnell, arXiv 1011.0686): states the policy reaches, answers of the expert.
    """

    # The expert's turn as the tokens the model should have said.
    answer: Callable[[Demonstration], Completion]
    lesson: Lesson
    policy_share: float = 0.0  # probability that the policy acts
    mixing: Mixing = "turn"  # drawn anew each turn, or once for the episode


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSettings:
    """What one call of `sample` plays by."""

    sampling: SamplingParams
    max_turns: int
    max_actions: int
    options: dict[str, Any] = field(default_factory=dict)  # of every reset, beside the task's split
    format_reward: float = 0.0  # for a turn whose answer parses
    invalid_penalty: float = 0.0  # taken off for one that does not
    render_final: bool = (
        False  # the prompt after the last turn of cut episodes, for a critic to bootstrap with
    )
    policy_version: int = 0
    demonstrations: DemonstrationSettings | None = None
    seed: int = 0


@dataclass(slots=True)
class RolloutCounts:
    """What happened during one run of the loop; seconds of wall clock where a name ends in `_s`."""

    crashes: int = 0
    timeouts: int = 0
    turns: int = 0
    actions: int = 0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    render_s: float = 0.0
    generate_s: float = 0.0
    simulate_s: float = 0.0
    failures: list[str] = field(default_factory=list)
    backend: dict[str, int] = field(default_factory=dict)  # what the generation backend counted


@dataclass(slots=True)
class _Play:
    """An episode under way in a slot."""

    member: Member
    episode: SingleAgentEpisode
    rng: np.random.Generator
    policy_acts: bool = True
    shown: Demonstration | None = None  # what the expert does in the present state
    label: Completion | None = None  # its answer in tokens
    prompt: Prompt | None = None
    answer: Completion | None = None  # what is acted on
    parsed: ParsedAction | None = None
    num_actions: int = 0


class Rollout:
    """Plays the episodes of a queue to their end.

    Args:
        pool: the simulators.
        backend: generates completions.
        render: prompts of episodes that wait for an answer (the env-to-module pipeline).
        parse: what completions mean (the module-to-env pipeline).
        settings: see there.
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
        self._settings = settings
        self._on_event = on_event
        self.counts = RolloutCounts()
        self._plays: dict[int, _Play] = {}
        self._generating: dict[int, Future[Completion]] = {}

    def run(self, queue: EpisodeQueue) -> list[SingleAgentEpisode]:
        """All episodes of the queue, group by group.

        Raises:
            SimulatorError: simulators fail so persistently that no group can be finished.
        """
        before = dict(self._backend.counts())
        try:
            self._play_all(queue)
        finally:  # members of groups that were given up, or everything after an error
            for future in self._generating.values():
                future.cancel()
            for slot in list(self._plays):
                self._pool.cancel(slot)
                self._leave(slot)
            self._generating.clear()
            after = self._backend.counts()
            self.counts.backend = {name: count - before.get(name, 0) for name, count in after.items()}
        return queue.episodes()

    def _play_all(self, queue: EpisodeQueue) -> None:
        idle = deque(range(len(self._pool)))
        limit = 100 + 10 * len(self._pool)
        while not queue.done:
            while idle and (member := queue.take()) is not None:
                self._start(idle.popleft(), member)
            ready: list[int] = []
            for slot, outcome in self._pool.poll(self._patience()):
                if isinstance(outcome, SlotFailure):
                    self._lose(slot, outcome, queue)
                elif not queue.is_dropped(self._plays[slot].member) and not self._receive(
                    slot, outcome, queue
                ):
                    ready.append(slot)
                    continue
                self._leave(slot)
                idle.append(slot)
            self._ask(ready)
            for slot in self._answered():
                if queue.is_dropped(self._plays[slot].member):
                    self._leave(slot)
                    idle.append(slot)
                else:
                    self._act([slot])
            if queue.num_replaced > limit:
                raise SimulatorError(
                    f"{queue.num_replaced} groups could not be finished; the last failures: "
                    + "; ".join(self.counts.failures[-3:])
                )

    def _leave(self, slot: int) -> None:
        self._backend.end_session(self._plays.pop(slot).episode.id_)

    def _patience(self) -> float:
        """Seconds to wait for simulators: none where prompts could be answered instead."""
        if not self._generating:
            return _WAIT_S
        return 0.0 if self._enough_to_generate() else 0.02

    def _enough_to_generate(self) -> bool:
        # A batch of half the slots costs little more than a batch of one; waiting for the slowest would be lockstep.
        waiting = len(self._generating)
        return self._pool.num_busy == 0 or 2 * waiting >= len(self._plays)

    def _start(self, slot: int, member: Member) -> None:
        settings = self._settings
        episode = SingleAgentEpisode()
        episode.custom_data.update({GROUP: member.task.group, TASK_SEED: member.task.seed})
        # Two groups of a call may play the same task.
        own = [settings.seed, member.task.seed, member.key, member.index, member.attempt]
        rng = np.random.default_rng(own)
        play = _Play(member, episode, rng)
        demonstrations = settings.demonstrations
        if demonstrations is not None:
            play.policy_acts = bool(rng.random() < demonstrations.policy_share)
        self._plays[slot] = play
        self._on_event("on_episode_created", episode, slot)
        self._pool.reset(
            slot,
            seed=member.task.seed,
            options={"split": member.task.split, **settings.options},
            expert_max_actions=settings.max_actions if demonstrations is not None else 0,
        )

    def _lose(self, slot: int, failure: SlotFailure, queue: EpisodeQueue) -> None:
        if failure.kind == "timeout":
            self.counts.timeouts += 1
        else:
            self.counts.crashes += 1
        self.counts.failures.append(failure.message.strip().splitlines()[-1][:500])
        queue.fail(self._plays[slot].member)

    def _receive(self, slot: int, step: SlotStep, queue: EpisodeQueue) -> bool:
        """Records a reset or a turn; True if the episode is over."""
        play = self._plays[slot]
        self.counts.simulate_s += step.wall_s
        if not play.episode.is_reset:
            play.episode.add_env_reset(observation=step.observation, infos=step.info)
            self._on_event("on_episode_start", play.episode, slot)
        else:
            self._record(play, step)
            self._on_event("on_episode_step", play.episode, slot)
        demonstrations = self._settings.demonstrations
        gave_up = False
        if demonstrations is not None and step.demonstration is not None:
            gave_up = not step.demonstration.actions
            play.shown = step.demonstration
            play.label = None if gave_up else demonstrations.answer(step.demonstration)
            if demonstrations.mixing == "turn":
                play.policy_acts = bool(play.rng.random() < demonstrations.policy_share)
        if not (play.episode.is_done or gave_up):
            return False
        if gave_up and len(play.episode):
            play.episode.is_truncated = True  # what was labelled so far is kept
        if len(play.episode):
            self._finish(play, slot)
        queue.finish(play.member, play.episode)
        return True

    def _record(self, play: _Play, step: SlotStep) -> None:
        settings = self._settings
        assert play.prompt is not None and play.answer is not None and play.parsed is not None
        valid = play.parsed.valid
        info = dict(step.info) if valid else {**step.info, "invalid_reason": play.parsed.reason}
        outputs: dict[str, Any] = {
            VLMColumns.PROMPT: play.prompt,
            VLMColumns.PARSED: play.parsed,
            VLMColumns.ANCHOR: _anchor(play.episode.get_observations(-1), play.episode.get_infos(-1)),
        }
        if settings.demonstrations is not None:
            outputs[VLMColumns.EXECUTED] = play.answer
            if play.shown is not None and play.label is not None:
                images = len(play.episode.get_observations(-1).get("images", ()))
                prompt, asked = settings.demonstrations.lesson(play.shown, play.prompt, play.label, images)
                outputs |= {VLMColumns.PROMPT: prompt, VLMColumns.FOLLOWUPS: asked}
        last_turn = len(play.episode) + 1 >= settings.max_turns
        play.episode.add_env_step(
            observation=step.observation,
            action=play.label or play.answer,
            reward=step.reward + (settings.format_reward if valid else -settings.invalid_penalty),
            infos=info,
            terminated=step.terminated,
            truncated=step.truncated or (last_turn and not step.terminated),
            extra_model_outputs=outputs,
        )
        self.counts.turns += 1
        self.counts.actions += len(play.parsed.actions)
        play.num_actions += len(play.parsed.actions)

    def _finish(self, play: _Play, slot: int) -> None:
        episode = play.episode
        info = episode.get_infos(-1)
        episode.custom_data.update(
            {
                SUCCESS: bool(info.get("success", False)),
                METRICS: {str(k): float(v) for k, v in info.get("metrics", {}).items()},
                "num_actions": play.num_actions,
            }
        )
        if self._settings.render_final and not episode.is_terminated:
            episode.custom_data[FINAL_PROMPT] = self._rendered([episode])[0]
        self._on_event("on_episode_end", episode, slot)

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
            play.prompt = prompt
            if self._settings.demonstrations is not None and not play.policy_acts:
                play.answer = play.label
                expert_acts.append(slot)
                continue
            # Of the turn's own: what is sampled does not depend on who else was ready.
            sampling = replace(self._settings.sampling, seed=int(play.rng.integers(2**31)))
            request = GenerationRequest(prompt=prompt, sampling=sampling, session=play.episode.id_)
            self._generating[slot] = self._backend.submit(request)
        self._act(expert_acts)

    def _answered(self) -> list[int]:
        """Slots whose completions are there, after working or waiting for some if that is what is left to do."""
        if self._generating and self._enough_to_generate():
            start = time.perf_counter()
            self._backend.poll(None if self._pool.num_busy == 0 else _WAIT_S)
            self.counts.generate_s += time.perf_counter() - start
        done = [slot for slot, future in self._generating.items() if future.done()]
        for slot in done:
            play = self._plays[slot]
            play.answer = self._generating.pop(slot).result()
            self.counts.generated_tokens += len(play.answer.token_ids)
            assert play.prompt is not None
            self.counts.prompt_tokens += len(play.prompt.token_ids)
        return done

    def _act(self, slots: list[int]) -> None:
        if not slots:
            return
        plays = [self._plays[slot] for slot in slots]
        answers = [play.answer for play in plays if play.answer is not None]
        parsed = self._parse(answers, [play.episode for play in plays])
        for slot, play, meaning in zip(slots, plays, parsed, strict=True):
            play.parsed = meaning
            said = _said(play.answer, meaning) if play.answer is not None else None
            self._pool.turn(slot, meaning.actions if meaning.valid else (), said)


def _said(answer: Completion, meaning: ParsedAction) -> Said:
    """An answer in words: what is left without the chat format's tokens, and the parts the parser found."""
    text = answer.text[: answer_end(answer.text, STOP_TOKENS)]
    return Said(text=text, parts={name: text[start:stop] for name, (start, stop) in meaning.spans.items()})


def _anchor(observation: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    """What a state is known by: the simulator's word for it, or a digest of its observation."""
    if "anchor" in info:
        return str(info["anchor"])
    digest = hashlib.blake2b(str(observation["text"]).encode(), digest_size=16)
    for image in observation.get("images", ()):
        digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()
