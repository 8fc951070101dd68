"""Prompts of episodes, and actions of answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from tiny import MODEL, tiny_config

from rllib_vlm.connectors.parse_actions import ParseActions
from rllib_vlm.connectors.render_prompts import RenderPrompts
from rllib_vlm.core.columns import VLMColumns
from rllib_vlm.core.rl_module import VLMRLModule
from rllib_vlm.env.simulator_process import SimulatorFactory, SimulatorHost
from rllib_vlm.errors import RLlibVLMError
from rllib_vlm.prompts.renderer import PromptTooLong
from rllib_vlm.types import Completion, Demonstration


@pytest.fixture(scope="module")
def module():
    return VLMRLModule(
        model_config={"family": "qwen2_5_vl", **MODEL}, observation_space=None, action_space=None
    )


@pytest.fixture(scope="module")
def spec():
    return SimulatorHost(SimulatorFactory("frozen_lake", {"observation": "text"})).spec


def settings(**changes):
    return tiny_config("ppo").prompting(**changes).prompting_settings


def completion(module, text):
    ids = module.family.encode_answer(text)
    return Completion(
        token_ids=ids,
        logprobs=np.zeros(len(ids), np.float32),
        policy_version=0,
        finish_reason="stop",
        text=text,
    )


def episode_so_far(module, turns, *, stand_ins=False):
    episode = SingleAgentEpisode()
    episode.add_env_reset(observation={"text": "view 0"}, infos={"instruction": "reach the gift"})
    for i in range(turns):
        outputs = {VLMColumns.EXECUTED: completion(module, "right")} if stand_ins else {}
        episode.add_env_step(
            observation={"text": f"view {i + 1}"},
            action=completion(module, "left"),
            reward=0.0,
            infos={},
            extra_model_outputs=outputs,
        )
    return episode


def test_a_prompt_shows_the_task_the_present_view_and_the_chosen_past(module, spec):
    render = RenderPrompts(spec=spec, prompting=settings(history="last_2"))
    batch = render(
        rl_module=module, batch={}, episodes=[episode_so_far(module, 3), episode_so_far(module, 0)]
    )
    late, first = batch[VLMColumns.PROMPTS]
    for shown in ("reach the gift", "view 3", "view 2", "view 1", "left"):
        assert shown in late.text
    assert "view 0" not in late.text
    assert late.dropped_turns == 1
    assert "view 0" in first.text and first.dropped_turns == 0
    assert len(late.token_ids) > len(first.token_ids)


def test_the_sampled_ids_of_past_answers_stand_in_the_prompt_as_they_are(module, spec):
    render = RenderPrompts(spec=spec, prompting=settings(history="full"))
    episode = episode_so_far(module, 1)
    odd = np.array([5, 9, 5, 9, module.family.stop_token_ids[0]])  # no tokeniser would say it so
    episode.actions.data[0] = Completion(
        token_ids=odd, logprobs=np.zeros(5, np.float32), policy_version=0, finish_reason="stop", text="??"
    )
    prompt = render.render(episode, module.family)
    joined = ",".join(map(str, prompt.token_ids))
    assert "5,9,5,9" in joined


@pytest.mark.parametrize("history", ["full", {"name": "full", "images": "none"}, "last_2"])
@pytest.mark.parametrize(("observation", "limits"), [
    ("vision", {}), ("text", {}), ("vision", {"max_prompt_tokens": 110}), ("vision", {"max_images": 2}),
])  # fmt: skip
def test_a_prompt_that_goes_on_is_the_one_the_whole_conversation_makes(
    module, spec, history, observation, limits
):
    prompting = settings(history=history, observation=observation, **limits)
    render = RenderPrompts(spec=spec, prompting=prompting)
    rng = np.random.default_rng(0)

    def view(i):
        return {"text": f"view <image> {i}", "images": rng.integers(0, 256, (1, 28, 28, 3), dtype=np.uint8)}

    going, fresh = SingleAgentEpisode(), SingleAgentEpisode()
    first = view(0)
    for episode in (going, fresh):
        episode.add_env_reset(observation=first, infos={"instruction": "reach <image> the gift"})
    for i in range(5):
        prompt, whole = render.render(going, module.family), render.render(fresh, module.family)
        np.testing.assert_array_equal(prompt.token_ids, whole.token_ids)
        assert (prompt.text, prompt.dropped_turns) == (whole.text, whole.dropped_turns)
        assert len(prompt.images) == len(whole.images)
        assert all((a == b).all() for a, b in zip(prompt.images, whole.images, strict=True))
        said = completion(module, "le<image>ft" if i == 1 else "left")
        if i % 2:
            said = replace(said, token_ids=said.token_ids[:-1], finish_reason="length")
        after = view(i + 1)
        for episode, outputs in ((going, {VLMColumns.PROMPT: prompt}), (fresh, {})):
            episode.add_env_step(
                observation=after, action=said, reward=0.0, infos={}, extra_model_outputs=outputs
            )


def test_where_another_acted_the_prompt_shows_what_was_done(module, spec):
    render = RenderPrompts(spec=spec, prompting=settings(history="full"))
    shown = render.render(episode_so_far(module, 1, stand_ins=True), module.family).text
    assert "right" in shown and "left" not in shown.split("view 0")[-1]


def test_the_token_limit_cuts_whole_turns_and_counts_them(module, spec):
    free = RenderPrompts(spec=spec, prompting=settings(history="full"))
    episode = episode_so_far(module, 6)
    whole = free.render(episode, module.family)
    limit = len(whole.token_ids) - 1
    cut = RenderPrompts(spec=spec, prompting=settings(history="full", max_prompt_tokens=limit)).render(
        episode, module.family
    )
    assert len(cut.token_ids) <= limit
    assert cut.dropped_turns >= 1
    assert "view 6" in cut.text and "view 0" not in cut.text


def test_a_present_turn_that_does_not_fit_is_an_error(module, spec):
    render = RenderPrompts(spec=spec, prompting=settings(max_prompt_tokens=5))
    with pytest.raises(PromptTooLong):
        render.render(episode_so_far(module, 0), module.family)


def test_without_a_simulator_the_pieces_exist_but_say_they_cannot_work(module):
    with pytest.raises(RLlibVLMError):
        RenderPrompts(prompting=settings()).render(episode_so_far(module, 0), module.family)
    with pytest.raises(RLlibVLMError):
        ParseActions(prompting=settings()).parse(completion(module, "left"))


def test_answers_become_named_actions_and_bad_ones_none(module, spec):
    parse = ParseActions(spec=spec, prompting=settings(max_actions_per_turn=2))
    good = parse.format(Demonstration(actions=("left", "up")))
    answers = [completion(module, good), completion(module, "fly")]
    batch = parse(rl_module=module, batch={VLMColumns.ACTIONS: answers}, episodes=[])
    assert batch[VLMColumns.ACTIONS_FOR_ENV] == [("left", "up"), ()]
    assert [p.valid for p in batch[VLMColumns.PARSED]] == [True, False]
    assert batch[VLMColumns.PARSED][1].reason
