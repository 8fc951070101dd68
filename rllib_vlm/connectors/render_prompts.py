"""Env to module: what the model reads next, for every episode that waits for an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override

from rllib_vlm.connectors.trajectories import executed
from rllib_vlm.core.columns import VLMColumns
from rllib_vlm.env.simulator_process import SimulatorSpec
from rllib_vlm.errors import RLlibVLMError
from rllib_vlm.prompts import build_history, build_parser
from rllib_vlm.prompts.base import Exchange
from rllib_vlm.prompts.renderer import PromptRenderer
from rllib_vlm.sims.base import Observation
from rllib_vlm.types import Image, Message, Prompt


class RenderPrompts(ConnectorV2):
    """Adds one `Prompt` per episode to the batch, cut by whole turns to the token limit.

    Args:
        spec: the simulator's actions and description; None where no prompt will be rendered.
        prompting: the values of `VLMAlgorithmConfig.prompting`.
    """

    def __init__(
        self,
        input_observation_space: Any = None,
        input_action_space: Any = None,
        *,
        spec: SimulatorSpec | None = None,
        prompting: Mapping[str, Any],
    ) -> None:
        super().__init__(input_observation_space, input_action_space)
        self._max_prompt_tokens: int | None = prompting["max_prompt_tokens"]
        self._renderer: PromptRenderer | None = None
        if spec is not None:
            self._renderer = PromptRenderer(
                spec.description,
                spec.actions,
                build_parser(prompting["parser"], **prompting["parser_options"]),
                build_history(prompting["history"]),
                prompting["max_actions_per_turn"],
                template=prompting["template"],
                observation=prompting["observation"],
                image_placeholder=prompting["image_placeholder"],
                max_images=prompting["max_images"],
            )

    @override(ConnectorV2)
    def __call__(
        self,
        *,
        rl_module: Any,
        batch: dict[str, Any],
        episodes: list[SingleAgentEpisode],
        **kwargs: Any,
    ) -> dict[str, Any]:
        batch[VLMColumns.PROMPTS] = [self.render(episode, rl_module.family) for episode in episodes]
        return batch

    def render(self, episode: SingleAgentEpisode, family: Any) -> Prompt:
        """The prompt for the episode's last observation.

        Raises:
            PromptTooLong: the present turn alone is over the limit.
        """
        if self._renderer is None:
            raise RLlibVLMError("RenderPrompts was built without a simulator and cannot render prompts")
        return self._continued(episode, family) or self._whole(episode, family)

    def _continued(self, episode: SingleAgentEpisode, family: Any) -> Prompt | None:
        """The prompt before and what is new; None where that is not the whole prompt."""
        renderer = self._renderer
        assert renderer is not None
        known = episode.extra_model_outputs
        # What demonstrations keep of a prompt is made for learning.
        if not renderer.only_appends or VLMColumns.PROMPT not in known or VLMColumns.EXECUTED in known:
            return None
        before: Prompt = episode.get_extra_model_outputs(VLMColumns.PROMPT, -1)
        answer, now = episode.get_actions(-1), episode.get_observations(-1)
        if before.dropped_turns or answer.token_ids is None:
            return None
        said = Exchange(text="", images=(), answer=answer.text, answer_ids=answer.token_ids)
        prompt: Prompt = family.encode(renderer.following(said, now["text"], _images(now)), before)
        too_long = self._max_prompt_tokens is not None and len(prompt.token_ids) > self._max_prompt_tokens
        too_many = renderer.max_images is not None and len(prompt.images) > renderer.max_images
        return None if too_long or too_many else prompt

    def _whole(self, episode: SingleAgentEpisode, family: Any) -> Prompt:
        renderer = self._renderer
        assert renderer is not None
        *past, now = episode.get_observations()
        exchanges = [
            Exchange(
                text=observation["text"],
                images=_images(observation),
                answer=completion.text,
                answer_ids=completion.token_ids,
            )
            for observation, completion in zip(past, executed(episode), strict=True)
        ]
        instruction = episode.get_infos(0).get("instruction", "")
        if self._max_prompt_tokens is None:
            rendered = renderer.render(instruction, exchanges, now["text"], _images(now))
            return replace(family.encode(rendered.messages), dropped_turns=rendered.dropped_turns)
        encoded: dict[int, Prompt] = {}

        def count_tokens(messages: Sequence[Message]) -> int:
            encoded[id(messages)] = prompt = family.encode(messages)
            return len(prompt.token_ids)

        rendered = renderer.fit(
            instruction,
            exchanges,
            now["text"],
            _images(now),
            count_tokens=count_tokens,
            max_prompt_tokens=self._max_prompt_tokens,
        )
        return replace(encoded[id(rendered.messages)], dropped_turns=rendered.dropped_turns)


def _images(observation: Observation) -> tuple[Image, ...]:
    return tuple(observation["images"]) if "images" in observation else ()
