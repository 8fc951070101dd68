"""Questions of an expert's turns, from the simulator to the learner's rows."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import MODEL

from rllib_vlm.algorithms.sft import VLMSFTConfig
from rllib_vlm.batching.rows import rows_from_trajectory
from rllib_vlm.connectors.trajectories import to_trajectory
from rllib_vlm.env.vlm_env_runner import VLMEnvRunner


@pytest.fixture
def runner():
    config = (
        VLMSFTConfig()
        .environment("spoc", env_config={"questions": 3, "observation": "text", "start": "near"})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .prompting(parser="grounding", template="bare", observation="text", max_actions_per_turn=5)
        .simulation(max_turns=3)
        .rl_module(model_config={**MODEL, "vocab_size": 1024})
    )
    made = VLMEnvRunner(config=config, worker_index=0, num_workers=0)
    yield made
    made.stop()


def test_a_turn_and_its_question_are_one_row(runner):
    family = runner.module.family
    (episode,) = runner.sample_demonstrations(1)
    trajectory = to_trajectory(episode)
    assert len(trajectory.turns) == 2 * len(episode)
    rows = rows_from_trajectory(trajectory)
    assert len(rows) == len(episode)
    for i, row in enumerate(rows):
        turn, asked = trajectory.turns[2 * i : 2 * i + 2]
        sampled = [turn.completion.token_ids, asked.completion.token_ids]
        assert row.token_ids[row.loss_mask].tolist() == np.concatenate(sampled).tolist()
        text = family.decode(row.token_ids)
        assert text.count("locate the") == 1
        reply = family.decode(asked.completion.token_ids)
        assert reply.startswith("<think><observation>") and reply.endswith("<answer></answer>")
        assert asked.reward == 0.0


def test_the_next_prompt_does_not_show_the_question(runner):
    (episode,) = runner.sample_demonstrations(1)
    prompts = [t.prompt.text for t in to_trajectory(episode).turns[::2]]
    assert not any("locate the" in text for text in prompts)
