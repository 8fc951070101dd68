"""Module to env: what the answers mean, as named actions for the simulators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.annotations import override

from rllib_vlm.core.columns import VLMColumns
from rllib_vlm.env.simulator_process import SimulatorSpec
from rllib_vlm.errors import RLlibVLMError
from rllib_vlm.prompts import build_parser
from rllib_vlm.types import ActionSet, Completion, Demonstration, ParsedAction


class ParseActions(ConnectorV2):
    """Reads `ACTIONS` (completions), adds `PARSED`, and `ACTIONS_FOR_ENV`: named actions, none if invalid.

    Args:
        spec: the simulator's actions; None where nothing will be parsed.
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
        self._actions: ActionSet | None = spec.actions if spec else None
        self._max_actions: int = prompting["max_actions_per_turn"]
        self._parser = build_parser(prompting["parser"], **prompting["parser_options"])

    @override(ConnectorV2)
    def __call__(
        self,
        *,
        rl_module: Any,
        batch: dict[str, Any],
        episodes: list[SingleAgentEpisode],
        **kwargs: Any,
    ) -> dict[str, Any]:
        parsed = [self.parse(completion) for completion in batch[VLMColumns.ACTIONS]]
        batch[VLMColumns.PARSED] = parsed
        batch[VLMColumns.ACTIONS_FOR_ENV] = [p.actions if p.valid else () for p in parsed]
        return batch

    def parse(self, completion: Completion) -> ParsedAction:
        """Never raises on any text."""
        return self._parser(completion.text, self._known(), self._max_actions)

    def format(self, demonstration: Demonstration) -> str:
        """The answer an expert would write."""
        return self._parser.format(demonstration, self._known())

    def _known(self) -> ActionSet:
        if self._actions is None:
            raise RLlibVLMError("ParseActions was built without a simulator and cannot parse answers")
        return self._actions
