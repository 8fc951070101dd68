"""Demonstrations that are read again come back from a file as they were."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from rllib_vlm.connectors.trajectories import to_episode, to_trajectory
from rllib_vlm.data.trajectories import read_trajectories, write_trajectories
from rllib_vlm.errors import DataError
from rllib_vlm.types import Completion, ParsedAction, Prompt, Trajectory, Turn


def made(seed: int, turns: int = 3) -> Trajectory:
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 255, (8, 6, 3), np.uint8) for _ in range(2)]

    def turn(n: int) -> Turn:
        return Turn(
            prompt=Prompt(
                token_ids=rng.integers(0, 900, 5 + n),
                images=tuple(images[: 1 + n % 2]),  # the first stands in every prompt
                text='<image> fetch "ü"',
                dropped_turns=n,
                shown=rng.integers(-1, 50, (6, 5 + n)) if n else None,
            ),
            completion=Completion(
                token_ids=rng.integers(0, 900, 4),
                logprobs=rng.standard_normal(4).astype(np.float32),
                policy_version=n,
                finish_reason="stop",
                text="left",
            ),
            parsed=ParsedAction(valid=True, actions=("left", "up"), spans={"answer": (0, 4)}),
            reward=float(rng.standard_normal()),
        )

    return Trajectory(
        turns=tuple(turn(n) for n in range(turns)),
        group=f"train/{seed}",
        terminated=seed % 2 == 0,
        truncated=seed % 2 == 1,
        success=seed % 3 == 0,
    )


def plain(value):
    """Comparable: arrays by their bytes and types."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value


def test_they_come_back_to_the_bit_and_in_order(tmp_path: Path):
    written = [made(seed, turns=1 + seed % 4) for seed in range(40)]  # several row groups
    write_trajectories(tmp_path / "a.parquet", written)
    found = list(read_trajectories(tmp_path / "a.parquet"))
    assert plain(found) == plain(written)
    first, second = found[1].turns
    assert first.prompt.images[0] is second.prompt.images[0], "a picture of many prompts is kept once"
    assert first.prompt.images[0].flags.writeable


def test_a_learner_reads_the_same_of_the_episode_made_of_one():
    for seed in range(4):
        trajectory = made(seed)
        assert plain(to_trajectory(to_episode(trajectory))) == plain(trajectory)


def test_damage_is_an_error_of_data_or_does_no_harm(tmp_path: Path):
    file = tmp_path / "a.parquet"
    written = [made(seed) for seed in range(5)]
    write_trajectories(file, written)
    content = file.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(60):
        if rng.random() < 0.5:
            file.write_bytes(content[: rng.randrange(len(content))])
        else:
            damaged = bytearray(content)
            damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            file.write_bytes(damaged)
        try:
            found = list(read_trajectories(file))
        except DataError:
            refused += 1
        else:
            assert plain(found) == plain(written), "nothing else is ever read"
    assert refused > 30
    file.write_text("something else")
    with pytest.raises(DataError, match="damaged"):
        list(read_trajectories(file))
