"""Demonstrations of a warm start that are kept to be read again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_vlm.connectors.trajectories import to_episode, to_trajectory
from rllib_vlm.data.trajectories import read_trajectories, write_trajectories

FOLDER = "demonstrations"  # in a checkpoint
_FILES = {False: "grounding.parquet", True: "imitation.parquet"}


class DemonstrationBuffer:
    """The newest demonstrations, those that only show things and those to imitate apart."""

    def __init__(self) -> None:
        self._kept: dict[bool, list[SingleAgentEpisode]] = {False: [], True: []}

    def __len__(self) -> int:
        return sum(map(len, self._kept.values()))

    def draw(self, count: int, *, imitates: bool, rng: np.random.Generator) -> list[SingleAgentEpisode]:
        """`count` of them at random, or all there are, none of them twice."""
        kept = self._kept[imitates]
        return [kept[i] for i in rng.permutation(len(kept))[:count]]

    def add(self, new: Sequence[SingleAgentEpisode], *, imitates: bool, most: int) -> None:
        """Adds the newest; the oldest beyond `most` go."""
        self._kept[imitates] = [*self._kept[imitates], *new][-most:]

    def clear(self) -> None:
        for episodes in self._kept.values():
            episodes.clear()

    def save(self, checkpoint: Path) -> None:
        """Writes them into a checkpoint, as Parquet.

        Raises:
            OSError: the disk is full or fails.
        """
        for imitates, episodes in self._kept.items():
            if episodes:
                (checkpoint / FOLDER).mkdir(exist_ok=True)
                write_trajectories(
                    checkpoint / FOLDER / _FILES[imitates], [to_trajectory(e) for e in episodes]
                )

    def load(self, checkpoint: Path) -> None:
        """Takes those of a checkpoint in place of the present ones.

        Raises:
            DataError: their files are damaged.
        """
        for imitates, name in _FILES.items():
            file = checkpoint / FOLDER / name
            self._kept[imitates] = [to_episode(t) for t in read_trajectories(file)] if file.is_file() else []
