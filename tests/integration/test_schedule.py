"""Rates that fall with the clock."""

from __future__ import annotations

import pytest
from tiny import tiny_config

from rllib_vlm.callbacks.metrics import look_up

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.mark.parametrize(("by_time", "share"), [(False, 1.0), (True, 0.5)])
def test_half_of_the_time_is_half_of_the_schedule_where_it_goes_by_time(by_time, share):
    settings = {"lr_schedule": "linear", "time_budget_s": 1e6, "lr_schedule_by_time": by_time}
    config = (
        tiny_config("ppo")
        .warm_start(updates=10, lr=2e-3, **settings)
        .training(total_updates=10, lr=1e-3, **settings)
    )
    algorithm = config.build_algo()
    try:
        for phase, rate in (("warm_start", 2e-3), ("rl", 1e-3)):
            algorithm.run_state.phase = phase
            algorithm.run_state.warm_start_s = algorithm.run_state.rl_s = 5e5
            found = look_up(algorithm.train(), "learners/default_policy/lr")
            assert found == pytest.approx(share * rate, rel=1e-3)
    finally:
        algorithm.stop()
