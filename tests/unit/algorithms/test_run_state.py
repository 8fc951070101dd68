from __future__ import annotations

import pytest
from tiny import tiny_config

from rllib_vlm.algorithms.run_state import RunState


def test_phases_follow_each_other_by_updates():
    config = tiny_config("ppo").warm_start(updates=2).training(total_updates=1)
    state = RunState()
    state.advance(config)
    assert state.phase == "warm_start" and state.milestones(config) == ["start"]
    state.warm_start_updates = 1
    state.advance(config)
    assert state.phase == "warm_start" and state.milestones(config) == []
    state.warm_start_updates = 2
    state.advance(config)
    assert state.phase == "rl" and state.milestones(config) == ["warm_start_end"]
    state.updates = 1
    state.advance(config)
    assert state.phase == "finished" and state.milestones(config) == ["final"]


def test_phases_end_by_time_too():
    config = tiny_config("ppo").warm_start(updates=100, time_budget_s=5.0).training(time_budget_s=7.0)
    state = RunState(warm_start_updates=3, warm_start_s=5.1)
    state.advance(config)
    assert state.phase == "rl"
    state.rl_s = 6.9
    state.advance(config)
    assert state.phase == "rl"
    state.rl_s = 7.0
    state.advance(config)
    assert state.phase == "finished"


def test_spent_is_of_the_phase_that_goes_on():
    config = tiny_config("ppo").warm_start(updates=100, time_budget_s=5.0)
    assert RunState(warm_start_s=2.0).spent(config) == pytest.approx(0.4)
    assert RunState(phase="rl", warm_start_s=5.0, rl_s=3.0).spent(config) == 0.0  # no budget
    assert RunState(phase="rl", rl_s=3.0).spent(config.training(time_budget_s=4.0)) == pytest.approx(0.75)


def test_without_a_warm_start_the_beginning_is_its_end():
    config = tiny_config("ppo")
    state = RunState()
    state.advance(config)
    assert state.phase == "rl"
    assert state.milestones(config) == ["warm_start_end", "start"]


def test_a_linear_curriculum_rises_with_the_updates():
    config = tiny_config("ppo").simulation(curriculum={"start": 0.2, "end": 1.0, "updates": 4})
    state = RunState(level=0.2)
    levels = []
    for update in range(1, 6):
        state.updates = update
        state.learn_from(0.0, config)
        levels.append(state.level)
    assert levels == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.0])


def test_a_curriculum_on_success_waits_for_it():
    config = tiny_config("ppo").simulation(curriculum={"start": 0.0, "step": 0.5, "threshold": 0.7})
    state = RunState(level=0.0)
    levels = []
    for rate in (0.6, 0.7, 0.1, 0.9, 1.0):
        state.learn_from(rate, config)
        levels.append(state.level)
    assert levels == [0.0, 0.5, 0.5, 1.0, 1.0]


def test_it_survives_a_checkpoint():
    state = RunState(phase="rl", updates=3, task_cursor=9, level=0.5, evaluations={"start": {"x": 1}})
    assert RunState.from_dict(state.to_dict()) == state


def test_the_kl_coefficient_follows_its_target():
    config = tiny_config("ppo").training(kl_coeff=0.1, kl_target=0.02)
    state = RunState()
    for kl, expected in ((0.031, 0.2), (0.02, 0.2), (0.029, 0.2), (0.013, 0.1), (0.0, 0.05)):
        state.adapt_kl(kl, config)
        assert state.kl_coeff == pytest.approx(expected)
    assert RunState.from_dict(state.to_dict()).kl_coeff == state.kl_coeff
    fixed = RunState()
    fixed.adapt_kl(9.0, tiny_config("ppo").training(kl_coeff=0.1))
    assert fixed.kl_coeff is None


def test_a_run_that_goes_back_from_its_end_is_not_over_and_is_evaluated_anew():
    earlier = RunState(phase="rl", updates=3, task_cursor=10)
    evaluations = {"warm_start_end": {"success_rate": 0.5}, "final": {"success_rate": 0.0}}
    end = RunState(phase="finished", updates=9, task_cursor=30, rl_s=4.0, evaluations=evaluations)
    state = end.back_to(earlier, lr_factor=0.5, clip_factor=0.8)
    assert (state.phase, state.updates, state.task_cursor, state.rl_s) == ("rl", 3, 30, 4.0)
    assert state.rollbacks == 1 and list(state.evaluations) == ["warm_start_end"]
