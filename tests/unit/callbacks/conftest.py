from __future__ import annotations

import shutil

import numpy as np
import pytest


@pytest.fixture
def build():
    """Builds algorithms; at the end all of them are stopped, and their folders are removed."""
    built = []

    def make(config):
        built.append(config.build_algo())
        return built[-1]

    yield make
    for algorithm in built:
        algorithm.stop()
        shutil.rmtree(algorithm.logdir)


@pytest.fixture
def make_trajectory():
    """A made-up trajectory of `turns` answers of four tokens each."""
    from rllib_vlm.types import Completion, ParsedAction, Prompt, Trajectory, Turn

    def make(
        turns: int = 2, *, text: str = "<answer>left</answer>", success: bool = True, group: str = "train/7"
    ):
        parsed = ParsedAction(valid=True, actions=("left",))
        if "<answer>" not in text:
            parsed = ParsedAction(valid=False, reason="no <answer> block")
        turn = Turn(
            prompt=Prompt(token_ids=np.arange(5), text="You see <image>. Say <b>left</b>."),
            completion=Completion(
                token_ids=np.arange(4),
                logprobs=np.full(4, -0.5, np.float32),
                policy_version=1,
                finish_reason="stop",
                text=text,
            ),
            parsed=parsed,
            reward=0.25,
        )
        return Trajectory(
            turns=(turn,) * turns, group=group, terminated=success, truncated=not success, success=success
        )

    return make
