"""Conversations as episodes: what is imitated, after what, and that a simulator's own come back as they were."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from tiny import tiny_config

from rllib_vlm.config.conversations import write_conversations
from rllib_vlm.core.columns import VLMColumns
from rllib_vlm.data import ConversationReader
from rllib_vlm.env.vlm_env_runner import VLMEnvRunner
from rllib_vlm.errors import ConfigErrors, DataError
from rllib_vlm.prompts.renderer import PromptTooLong
from rllib_vlm.sims.frozen_lake import FrozenLake

make_lake = partial(FrozenLake, size=3, observation="both", max_steps=8, image_size=28)


@pytest.fixture
def runner():
    runner = VLMEnvRunner(config=tiny_config("sft"))
    yield runner
    runner.stop()


def test_an_experts_episodes_become_conversations_and_their_answers_are_imitated(tmp_path, runner):
    file = tmp_path / "lake.json"
    assert write_conversations(make_lake, file, {"template": "short"}, episodes=4, seed=5) == 4
    conversations = list(ConversationReader(file))
    longest = max(conversations, key=lambda c: len(c.messages))
    assert len(longest.messages) >= 5
    assert longest.messages[0].text == "Task: Reach the gift without falling into a hole."
    assert all(len(m.images) == (m.role == "user") for m in longest.messages)

    index = conversations.index(longest)
    (episode,) = runner.read_demonstrations([index], path=str(file)).items
    answers = [m.text for m in longest.messages if m.role == "assistant"]
    completions = list(episode.get_actions())
    family = runner.module.family
    assert [family.decode(c.token_ids) for c in completions] == answers
    assert episode.is_terminated and len(episode) == len(answers)
    prompts = list(episode.get_extra_model_outputs(VLMColumns.PROMPT))
    assert [len(p.images) for p in prompts] == list(range(1, len(answers) + 1))
    for prompt, completion, later in zip(prompts, completions, prompts[1:], strict=False):
        told = np.concatenate([prompt.token_ids, completion.token_ids])
        assert (later.token_ids[: len(told)] == told).all(), "answers stand in later prompts by their ids"


def test_a_prompt_over_the_limit_is_an_error(tmp_path):
    file = tmp_path / "lake.json"
    write_conversations(make_lake, file, {}, episodes=1)
    config = tiny_config("sft")
    config.prompting(max_prompt_tokens=5)
    runner = VLMEnvRunner(config=config)
    try:
        played = runner.read_demonstrations([0], path=str(file))
    finally:
        runner.stop()
    assert isinstance(played.error, PromptTooLong)


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ConfigErrors, match="Did you mean 'template'"):
        write_conversations(make_lake, tmp_path / "a.json", {"templat": "short"}, episodes=1)
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(DataError, match="exists already"):
        write_conversations(make_lake, tmp_path / "b.json", {}, episodes=1)
