"""The runner on the frozen lake, with a scripted or a real tiny model."""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import pytest
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO
from tiny import MODEL, tiny_config

from rllib_vlm.backends.scripted import ScriptedBackend
from rllib_vlm.core.columns import GROUP, METRICS, SUCCESS, TASK_SEED, VLMColumns
from rllib_vlm.env.tasks import Task, heldout_tasks
from rllib_vlm.env.vlm_env_runner import VLMEnvRunner
from rllib_vlm.env.weights import FrozenWeights
from rllib_vlm.sims.cards.deck import NAMES
from rllib_vlm.sims.cards.solver import solutions

made: list[VLMEnvRunner] = []


@pytest.fixture(autouse=True)
def close_runners():
    yield
    while made:
        made.pop().stop()


def make_runner(config, script=None, worker_index=0, num_workers=0):
    runner = VLMEnvRunner(config=config, worker_index=worker_index, num_workers=num_workers)
    made.append(runner)
    if script is not None:
        runner.module._backend = ScriptedBackend(runner.module.family, script)  # noqa: SLF001
    return runner


def metrics_of(runner):
    from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

    root = MetricsLogger(root=True)
    root.aggregate([runner.get_metrics()])
    return root.compile()


def answer(action):
    return f"<answer>{action}</answer>"


@pytest.mark.parametrize("process", ["inline", "subprocess"])
def test_whole_groups_of_siblings_come_back(process):
    config = tiny_config("grpo").training(group_size=4).simulation(process=process)
    runner = make_runner(config)
    episodes = runner.sample(num_episodes=12)
    counts = Counter(e.custom_data[GROUP] for e in episodes)
    assert list(counts.values()) == [4, 4, 4]
    for start in range(0, 12, 4):
        siblings = episodes[start : start + 4]
        assert len({e.custom_data[TASK_SEED] for e in siblings}) == 1
        assert len({e.get_observations(0)["text"] for e in siblings}) == 1
    for episode in episodes:
        episode.validate()
        assert episode.is_done
        for key in (VLMColumns.PROMPT, VLMColumns.PARSED):
            assert len(episode.get_extra_model_outputs(key)) == len(episode)
        assert len(episode.get_observations()) == len(episode) + 1


def test_no_episode_is_favoured_for_being_short():
    # The first to finish would be those that fall into a hole at once, or stand beside the goal.
    config = tiny_config("ppo", size=4, max_steps=20).simulation(max_turns=20)
    runner = make_runner(config, script=[answer("up"), answer("left")])
    episodes = runner.sample(num_episodes=40)
    alone = make_runner(tiny_config("ppo", size=4, max_steps=20).simulation(max_turns=20), [answer("up")])
    assert [e.custom_data[TASK_SEED] for e in episodes] == [alone.tasks.draw().seed for _ in range(40)]


def test_what_is_sampled_does_not_depend_on_who_plays_beside():
    together, alone = tiny_config("ppo"), tiny_config("ppo")
    alone.env_runners(num_envs_per_env_runner=1)
    tasks = [Task("train", seed) for seed in (3, 4, 3, 5, 6)]  # the same task twice, as two groups
    played = [make_runner(c).play_groups(tasks, seed=7).items for c in (together, alone)]
    answers = [[[a.token_ids.tolist() for a in e.get_actions()] for e in episodes] for episodes in played]
    assert answers[0] == answers[1]
    assert answers[0][0] != answers[0][2]


def test_no_completion_is_wasted():
    runner = make_runner(tiny_config("ppo"))
    episodes = runner.sample(num_episodes=10)
    metrics = metrics_of(runner)
    turns = sum(len(e) for e in episodes)
    tokens = sum(len(a.token_ids) for e in episodes for a in e.get_actions())
    assert metrics["num_generated_tokens"] == tokens
    assert metrics["num_env_steps_sampled_lifetime"] == turns
    assert metrics["num_episodes"] == 10
    assert metrics["num_episodes_under_way"] == 0


@pytest.mark.parametrize("history", ["full", "current"])
def test_a_growing_history_costs_what_is_new_and_leaves_nothing_behind(history: str):
    runner = make_runner(
        tiny_config("ppo", observation="vision").prompting(history=history, template="default")
    )
    episodes = runner.sample(num_episodes=6)
    metrics = metrics_of(runner)
    prompts = [p for e in episodes for p in e.get_extra_model_outputs(VLMColumns.PROMPT)]
    computed, reused = metrics["num_prefill_tokens"], metrics["num_prefill_tokens_reused"]
    assert computed + reused == sum(len(p.token_ids) for p in prompts)
    cache = runner.module.backend.cache
    assert cache.enabled == (history == "full") and len(cache) == 0


def test_invalid_answers_idle_cost_and_say_why():
    config = tiny_config("ppo", max_steps=10).prompting(invalid_penalty=0.25, format_reward=0.5)
    config.simulation(max_turns=3)
    runner = make_runner(config, script=["nonsense"])
    (episode,) = runner.sample(num_episodes=1)
    assert len(episode) == 3 and episode.is_truncated and not episode.is_terminated
    assert episode.get_rewards() == [-0.25] * 3
    assert all(info["invalid_reason"] for info in episode.get_infos()[1:])
    assert not episode.custom_data[SUCCESS]
    assert episode.custom_data[METRICS] == {"steps": 3.0, "fell": 0.0, "spl": 0.0}  # though we cut it
    assert metrics_of(runner)["parse_failure_rate"] == 1.0


def test_valid_answers_earn_the_format_reward_and_end_with_the_simulator():
    config = tiny_config("ppo").prompting(format_reward=0.5, invalid_penalty=0.25)
    runner = make_runner(config, script=[answer("left"), answer("down")])
    for episode in runner.sample(num_episodes=5):
        assert len(episode) <= 4
        rewards = episode.get_rewards()
        assert all(r >= 0.5 for r in rewards)
        assert episode.custom_data[SUCCESS] == (rewards[-1] == 1.5)


def test_the_same_seed_gives_the_same_episodes():
    first, second = (make_runner(tiny_config("ppo")).sample(num_episodes=6) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.custom_data[TASK_SEED] == b.custom_data[TASK_SEED]
        assert a.get_rewards() == b.get_rewards()
        for x, y in zip(a.get_actions(), b.get_actions(), strict=True):
            np.testing.assert_array_equal(x.token_ids, y.token_ids)
            np.testing.assert_array_equal(x.logprobs, y.logprobs)


def test_demonstrations_hold_the_experts_answers_and_succeed():
    runner = make_runner(tiny_config("sft", max_steps=12).simulation(max_turns=12))
    episodes = runner.sample_demonstrations(8)
    assert len(episodes) == 8
    for episode in episodes:
        assert episode.custom_data[SUCCESS]
        for completion, parsed in zip(
            episode.get_actions(), episode.get_extra_model_outputs(VLMColumns.PARSED), strict=True
        ):
            assert parsed.valid and len(parsed.actions) == 1
            np.testing.assert_array_equal(
                completion.token_ids, runner.module.family.encode_answer(completion.text)
            )
    assert metrics_of(runner)["num_generated_tokens"] == 0


def test_the_policy_acts_and_the_expert_labels():
    config = tiny_config("sft", max_steps=6).simulation(max_turns=6)
    runner = make_runner(config, script=[answer("up")])
    for episode in runner.sample_demonstrations(6, policy_share=1.0):
        acted = episode.get_extra_model_outputs(VLMColumns.EXECUTED)
        assert {a.text for a in acted} == {answer("up")}
        labels = {a.text for a in episode.get_actions()}
        assert labels <= {answer(a) for a in ("left", "right", "up", "down")}
    mixed = runner.sample_demonstrations(20, policy_share=0.5, mixing="episode")
    kinds = set()
    for episode in mixed:
        acted = [a.text for a in episode.get_extra_model_outputs(VLMColumns.EXECUTED)]
        own = [a.text for a in episode.get_actions()]
        kinds.add("expert" if acted == own else "policy")
    assert kinds == {"expert", "policy"}


def test_heldout_tasks_are_those_asked_for_by_the_settings_of_evaluation():
    config = tiny_config("ppo").evaluation(evaluation_config={"temperature": 0.0, "max_turns": 2})
    runner = make_runner(config)
    tasks = heldout_tasks(5)
    first = runner.sample_heldout(tasks)
    second = runner.sample_heldout(tasks)
    assert [e.custom_data[GROUP] for e in first] == [t.group for t in tasks]
    for a, b in zip(first, second, strict=True):
        assert len(a) <= 2
        assert [x.text for x in a.get_actions()] == [x.text for x in b.get_actions()]  # greedy
    assert metrics_of(runner).get("num_env_steps_sampled_lifetime", 0) == 0  # not training steps


def test_an_evaluation_runner_plays_its_share():
    config = tiny_config("ppo").evaluation(evaluation_duration=7, evaluation_num_env_runners=2)
    evaluation = config.get_evaluation_config_object()
    seeds = []
    for worker in (1, 2):
        runner = make_runner(evaluation, worker_index=worker, num_workers=2)
        seeds += [e.custom_data[TASK_SEED] for e in runner.sample(num_episodes=4)]
    assert sorted(seeds) == list(range(8))


def test_the_level_reaches_the_simulator():
    config = tiny_config("ppo", size=4)
    runner = make_runner(config, script=[answer("up")])
    runner.play_groups([runner.tasks.draw() for _ in range(10)], level=0.0)
    near = runner.sample(num_episodes=10)
    # At level 0 the goal is beside the start.
    for episode in near:
        rows = [line.split() for line in episode.get_observations(0)["text"].splitlines()]
        where = {c: (i, j) for i, row in enumerate(rows) for j, c in enumerate(row) if c in "PG"}
        assert sum(abs(a - b) for a, b in zip(where["P"], where["G"], strict=True)) == 1


def test_a_cut_episode_brings_the_prompt_that_would_have_followed():
    config = tiny_config("ppo", max_steps=10).simulation(max_turns=2)
    runner = make_runner(config, script=["nonsense"])
    (episode,) = runner.sample(num_episodes=1)
    prompt = episode.custom_data["final_prompt"]
    assert episode.get_observations(-1)["text"].splitlines()[0] in prompt.text
    over = make_runner(
        config.copy(copy_frozen=False).training(bootstrap_truncated=False), script=["nonsense"]
    )
    (episode,) = over.sample(num_episodes=1)  # nothing to value: out of turns is failed
    assert episode.is_truncated and "final_prompt" not in episode.custom_data


def test_new_weights_come_with_their_version():
    runner = make_runner(tiny_config("ppo"))
    state = {"rl_module": runner.module.get_state(inference_only=True), "weights_seq_no": 5}
    changed = {k: v * 0.5 if v.ndim > 1 else v for k, v in state["rl_module"].items()}
    runner.set_state({**state, "rl_module": changed})
    episodes = runner.sample(num_episodes=2)
    assert {a.policy_version for e in episodes for a in e.get_actions()} == {5}
    for name, value in runner.module.get_state().items():
        np.testing.assert_array_equal(value, changed[name])
    # An older version is loaded too: a restored run goes back.
    runner.set_state({"rl_module": state["rl_module"], "weights_seq_no": 2})
    assert runner.module.policy_version == 2


def test_what_it_cannot_do_it_refuses():
    runner = make_runner(tiny_config("ppo"))
    with pytest.raises(ValueError, match="num_episodes"):
        runner.sample(num_timesteps=10)


def test_a_shared_module_is_not_copied():
    first, second = (make_runner(tiny_config("ppo")) for _ in range(2))
    second.share_module(first.module)
    second.set_policy_version(3)
    assert second.module is first.module
    episode = second.sample(num_episodes=1)[0]
    assert episode.get_actions()[0].policy_version == 3


@pytest.mark.parametrize("process", ["inline", "subprocess"])
def test_a_simulator_hears_the_answer_before_its_turn(process):
    said = "<think><observation>a lake</observation><reasoning>why not</reasoning></think><answer>up</answer>"
    config = tiny_config("ppo").environment("listening_lake:ListeningLake")
    config = config.prompting(parser="grounding").generation(max_new_tokens=200).simulation(process=process)
    runner = make_runner(config, script=[said, "<think>"])
    heard = [info["heard"] for e in runner.sample(num_episodes=8) for info in e.get_infos()[1:]]
    assert {h.text for h in heard} == {said, "<think>"}, "an answer that does not parse is heard too"
    parts = next(h.parts for h in heard if h.text == said)
    assert (parts["observation"], parts["reasoning"], parts["answer"]) == ("a lake", "why not", "up")


def test_streets_grade_what_the_policy_says():
    """A wrong action, and an intersection that is not there."""
    form = '{"current observation": "You observe an intersection", "current instruction": "", "action": "%s"}'
    street = {"city": {"routes": 10, "width": 128}, "observation": "text", "verify_iter": 3}
    config = tiny_config("ppo").environment("streetview")
    config.env_config = street  # none of the lake's
    config = config.prompting(parser="json_grounding", max_actions_per_turn=1, invalid_penalty=0.0)
    config = config.generation(max_new_tokens=200).simulation(max_turns=3)
    runner = make_runner(config, script=[form % "stop()"])
    for episode in runner.sample(num_episodes=3):
        assert list(episode.get_rewards()) == [-1.5, -1.5, -1.5]
        assert episode.is_truncated and not episode.custom_data[SUCCESS]


def test_transcripts_tell_what_was_said_and_graded():
    """Deals of another rule, solved by it at the second try."""

    def script(prompt):
        names = re.findall(r"cards: ([^\n<]+)", prompt.text)[-1].split()
        numbers = [NAMES.index(name) + 1 for name in names]
        formula = solutions(tuple(sorted(numbers)), 24)[0] if "tries left" in prompt.text else "1+1"
        return json.dumps({"cards": names, "number": numbers, "formula": formula})

    config = tiny_config("ppo").environment("cards").prompting(parser="json", invalid_penalty=0.0)
    config.env_config = {"observation": "text"}
    runner = make_runner(config.generation(max_new_tokens=200), script=script)
    over = []
    played = runner.play_transcripts(
        [Task("heldout", seed) for seed in (5, 6)], {"split": "rule_ood"}, lambda: over.append(1)
    )
    assert played.error is None and len(over) == 2
    assert [told.summary.task_seed for told in played.items] == [5, 6]
    for told in played.items:
        assert told.summary.success and "K as 13" in told.task["instruction"]
        first, second = told.turns
        assert json.loads(first.output)["formula"] == "1+1" and second.reward == 5.0
        assert [turn.info["grades"][0]["attempt"] for turn in told.turns] == [1, 2]
        assert second.info["grades"][0]["correct"] and "state" not in second.info
        json.dumps([told.task, *(turn.info for turn in told.turns)])
    assert len(runner.play_heldout([Task("heldout", 5)]).items) == 1 and len(over) == 2


def test_weights_that_learn_come_alone_once_the_frozen_ones_are_there():
    config = tiny_config("ppo").rl_module(model_config={**MODEL, "lora": {"rank": 2, "target": ["q_proj"]}})
    runner = make_runner(config)
    before = {name: np.array(value) for name, value in runner.module.get_state().items()}
    trained = runner.module.get_state(components="trained")
    for version, moved in enumerate((1.0, 2.0), 7):
        state = {"default_policy": {name: np.full_like(v, moved) for name, v in trained.items()}}
        runner.set_state({"rl_module": state, WEIGHTS_SEQ_NO: version, "frozen": FrozenWeights("a", None)})
        assert runner.module.policy_version == version
        for name, value in runner.module.get_state().items():
            np.testing.assert_array_equal(value, moved if name in trained else before[name])
    # The same version, but of another model: read again.
    state = {"default_policy": {name: np.zeros_like(v) for name, v in trained.items()}}
    runner.set_state({"rl_module": state, WEIGHTS_SEQ_NO: 8, "frozen": FrozenWeights("b", None)})
    assert not any(runner.module.get_state()[name].any() for name in trained)
