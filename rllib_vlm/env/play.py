"""An episode under way: what its simulator and its policy did, turn by turn, and the settings it is played by."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_vlm.core.columns import GROUP, METRICS, SUCCESS, TASK_SEED, VLMColumns
from rllib_vlm.env.simulator_process import SlotStep
from rllib_vlm.env.tasks import Member
from rllib_vlm.prompts.answer import STOP_TOKENS, answer_end
from rllib_vlm.types import Completion, Demonstration, ParsedAction, Prompt, Said, SamplingParams, Turn

Mixing = Literal["turn", "episode"]
# A turn's prompt with what its last n images show, and the turns of the questions that follow its answer.
Lesson = Callable[[Demonstration, Prompt, Completion, int], tuple[Prompt, list[Turn]]]


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
    demonstrations: DemonstrationSettings | None = None
    seed: int = 0
    batch_wait_s: float = 0.02  # see `rollout`


class Play:
    """An episode under way in a slot."""

    def __init__(self, member: Member, settings: RolloutSettings) -> None:
        self.member = member
        self.episode = SingleAgentEpisode()
        self.episode.custom_data.update({GROUP: member.task.group, TASK_SEED: member.task.seed})
        self.prompt: Prompt | None = None
        self.answer: Completion | None = None  # what is acted on
        self.parsed: ParsedAction | None = None
        self._settings = settings
        # All that is drawn in this episode. Two groups of a call may play the same task: hence the group's number.
        own = [settings.seed, member.task.seed, member.key, member.index, member.attempt]
        self._rng = np.random.default_rng(own)
        self._num_actions = 0
        self._policy_acts = True
        self._shown: Demonstration | None = None  # what the expert does in the present state
        self._label: Completion | None = None  # its answer in tokens
        self._draw_who_acts()

    @property
    def expert_answer(self) -> Completion | None:
        """What is acted on in the present state without asking the policy."""
        return None if self._policy_acts else self._label

    def draw_sampling(self) -> SamplingParams:
        """Of the present turn, with a seed of its own: what is sampled does not depend on who else was ready."""
        return replace(self._settings.sampling, seed=int(self._rng.integers(2**31)))

    def receive(self, step: SlotStep) -> bool:
        """Records a reset, or the turn that the latest answer led to; True if the episode is over."""
        if not self.episode.is_reset:
            self.episode.add_env_reset(observation=step.observation, infos=step.info)
        else:
            self._record(step)
        demonstrations = self._settings.demonstrations
        gave_up = False
        if demonstrations is not None and step.demonstration is not None:
            gave_up = not step.demonstration.actions
            self._shown = step.demonstration
            self._label = None if gave_up else demonstrations.answer(step.demonstration)
            if demonstrations.mixing == "turn":
                self._draw_who_acts()
        if gave_up and len(self.episode) and not self.episode.is_done:
            self.episode.is_truncated = True  # what was labelled so far is kept
        if not (self.episode.is_done or gave_up):
            return False
        if len(self.episode):
            info = self.episode.get_infos(-1)
            self.episode.custom_data.update(
                {
                    SUCCESS: bool(info.get("success", False)),
                    METRICS: {str(k): float(v) for k, v in info.get("metrics", {}).items()},
                    "num_actions": self._num_actions,
                }
            )
        return True

    def said(self) -> Said | None:
        """The answer in words: what is left without the chat format's tokens, and the parts the parser found."""
        if self.answer is None or self.parsed is None:
            return None
        text = self.answer.text[: answer_end(self.answer.text, STOP_TOKENS)]
        spans = self.parsed.spans.items()
        return Said(text=text, parts={name: text[start:stop] for name, (start, stop) in spans})

    def _draw_who_acts(self) -> None:
        demonstrations = self._settings.demonstrations
        if demonstrations is not None:
            self._policy_acts = bool(self._rng.random() < demonstrations.policy_share)

    def _record(self, step: SlotStep) -> None:
        settings, episode = self._settings, self.episode
        assert self.prompt is not None and self.answer is not None and self.parsed is not None
        valid = self.parsed.valid
        observation = episode.get_observations(-1)
        outputs: dict[str, Any] = {
            VLMColumns.PROMPT: self.prompt,
            VLMColumns.PARSED: self.parsed,
            VLMColumns.ANCHOR: _anchor(observation, episode.get_infos(-1)),
        }
        if settings.demonstrations is not None:
            outputs[VLMColumns.EXECUTED] = self.answer
            if self._shown is not None and self._label is not None:
                images = len(observation.get("images", ()))
                lesson = settings.demonstrations.lesson(self._shown, self.prompt, self._label, images)
                outputs |= {VLMColumns.PROMPT: lesson[0], VLMColumns.FOLLOWUPS: lesson[1]}
        last_turn = len(episode) + 1 >= settings.max_turns
        episode.add_env_step(
            observation=step.observation,
            action=self._label or self.answer,
            reward=step.reward + (settings.format_reward if valid else -settings.invalid_penalty),
            infos=dict(step.info) if valid else {**step.info, "invalid_reason": self.parsed.reason},
            terminated=step.terminated,
            truncated=step.truncated or (last_turn and not step.terminated),
            extra_model_outputs=outputs,
        )
        self._num_actions += len(self.parsed.actions)


def _anchor(observation: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    """What a state is known by: the simulator's word for it, or a digest of its observation."""
    if "anchor" in info:
        return str(info["anchor"])
    digest = hashlib.blake2b(str(observation["text"]).encode(), digest_size=16)
    for image in observation.get("images", ()):
        digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()
