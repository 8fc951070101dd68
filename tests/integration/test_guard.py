"""The collapse guard on a real run: it sees a ruined policy, takes it back and proves that the engine followed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_config

from rllib_vlm.callbacks import configured
from rllib_vlm.errors import RLlibVLMError
from rllib_vlm.guard.collapse_guard import EVENTS, EVENTS_FILE, STATES_FOLDER

pytestmark = pytest.mark.usefixtures("ray_cluster")

EAGER = {"every": 1, "proof": 1, "least_history": 2, "patience": 1, "z": 4.0}


def events(algorithm):
    file = Path(algorithm.logdir) / EVENTS_FILE
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def guarded(runners=0, **options):
    """A lake agent that answers in the right format after a short warm start."""
    config = tiny_config("ppo").env_runners(num_env_runners=runners)
    return (
        config.training(lr=1e-5, value_lr=1e-3)
        .warm_start(updates=12, episodes_per_update=12, epochs=4, lr=5e-3)
        .callbacks(configured("guard", **{**EAGER, **options}))
    )


def ruin(learner):
    """Weights that answer nothing readable."""
    with torch.no_grad():
        for p in learner.module["default_policy"].unwrapped().model.parameters():
            p.normal_(std=0.5)


def train(algorithm, updates, results):
    """Appends the results to those given, so that they are there where an update raises."""
    for _ in range(updates):
        results.append(algorithm.train())


def weights(algorithm):
    found = algorithm.learner_group.get_weights()["default_policy"]
    return {name: np.array(value) for name, value in found.items()}


@pytest.mark.parametrize("runners", [0, 1])
def test_a_ruined_policy_is_taken_back_and_the_run_goes_on_more_carefully(runners):
    algorithm = guarded(runners).build_algo()
    try:
        results = [algorithm.train() for _ in range(12 + 5)]
        assert [e for e in events(algorithm) if e["event"] != "sign"] == []
        assert algorithm.probe_sync() < 1e-3
        good = weights(algorithm)
        algorithm.learner_group.foreach_learner(func=ruin)
        if runners:  # in a process of its own, with the old weights still
            assert algorithm.probe_sync() > 1.0
        seconds, cursor = algorithm.run_state.rl_s, algorithm.run_state.task_cursor
        for _ in range(6):
            results.append(algorithm.train())
            if results[-1]["guard"]["rollbacks"]:
                break
        told = [e for e in events(algorithm) if e["event"] == "rollback"]
        assert len(told) == 1 and told[0]["probe_gap"] < 1e-3
        assert told[0]["lr_scale"] == 0.5 and told[0]["clip_scale"] == 0.8
        assert (
            results[-1]["guard"]["alarms_total"] == sum(e["event"] == "alarm" for e in events(algorithm)) > 0
        )
        back = weights(algorithm)
        assert max(np.abs(back[k] - good[k]).max() for k in good) < 0.01  # lr 1e-5 moved it no farther
        assert algorithm.run_state.rl_s > seconds and algorithm.run_state.task_cursor > cursor
        assert results[-1]["training_iteration"] == len(results)
        after = algorithm.train()
        assert after["learners"]["default_policy"]["lr"] == pytest.approx(5e-6)
        assert after["env_runners"]["parse_failure_rate"] < 0.5
    finally:
        algorithm.stop()


@pytest.mark.parametrize("writable", [True, False])
def test_a_run_with_nothing_to_go_back_to_stops_and_says_why(writable):
    algorithm = guarded(every=100 if writable else 1).build_algo()
    states = Path(algorithm.logdir) / STATES_FOLDER
    if not writable:
        states.write_text("a file where the folder of states should be")
    results = []
    try:
        train(algorithm, 12 + 4, results)
        algorithm.learner_group.foreach_learner(func=ruin)
        with pytest.raises(RLlibVLMError, match=r"collapsed at update .*no healthy state.*rllib diagnose"):
            train(algorithm, 6, results)
        told = [e["event"] for e in events(algorithm)]
        assert told[-1] == "stopped" and states.is_dir() is False
        # The last results hold all that happened, under the documented names, and the run was not over before.
        figures, last = results[-1]["guard"], results[-1]
        assert {figure: figures[figure] for figure in EVENTS.values()} == {
            figure: told.count(event) for event, figure in EVENTS.items()
        }
        assert figures["stopped"] == 1 and figures["alarms_total"] >= figures["alarms"] > 0
        assert (figures["states_not_saved"] > 0) is not writable
        assert results[0]["guard"]["stopped"] == 0 and last["done"] is False
    finally:
        algorithm.stop()


def test_every_event_has_a_documented_figure():
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    for event, figure in EVENTS.items():
        assert f"`{event}`" in page, f"docs/metrics.md does not name the event {event!r}"
        assert f"`{figure}`" in page or f"`guard/{figure}`" in page, f"docs/metrics.md lacks guard/{figure}"


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"patience": 0}, "patience is 0"),
        ({"lr_factor": 2.0, "z": -1.0}, "lr_factor.*z is"),
        ({"patienc": 1}, "patience"),
        ({"z": 0.0, "bounds": {"entropy": [1.0]}}, r"z is 0.0.*entropy is \[1.0\], not a floor"),
    ],
)
def test_wrong_options_are_told_before_anything_starts(options, wrong):
    with pytest.raises(RLlibVLMError, match=wrong):
        configured("guard", **options)
