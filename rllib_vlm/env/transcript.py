"""An episode in words: what was answered turn by turn, what it earned, and what the simulator said to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_vlm.connectors.trajectories import executed
from rllib_vlm.env.summary import EpisodeSummary
from rllib_vlm.prompts.answer import STOP_TOKENS, answer_end

# For estimators of credit, not for readers.
_LEFT_OUT = frozenset({"state", "anchor"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldTurn:
    """One answer and what came of it."""

    output: str  # without the chat format's tokens
    reward: float
    info: Mapping[str, Any]  # of the step, as far as JSON can hold it


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """One episode, without its pixels and tokens."""

    summary: EpisodeSummary
    task: Mapping[str, Any]  # `info` of the reset, as far as JSON can hold it
    turns: tuple[ToldTurn, ...]

    @classmethod
    def of(cls, episode: SingleAgentEpisode) -> Transcript:
        task, *infos = episode.get_infos()
        texts = [answer.text for answer in executed(episode)]
        return cls(
            summary=EpisodeSummary.of(episode),
            task=_told(task),
            turns=tuple(
                ToldTurn(output=text[: answer_end(text, STOP_TOKENS)], reward=float(reward), info=_told(info))
                for text, reward, info in zip(texts, episode.get_rewards(), infos, strict=True)
            ),
        )


def _told(info: Mapping[str, Any]) -> dict[str, Any]:
    return {str(k): _plain(v) for k, v in info.items() if k not in _LEFT_OUT and _is_plain(v)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | bool | int | float | np.generic)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
