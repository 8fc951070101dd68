import pytest

from rllib_vlm.config.document import parse_yaml
from rllib_vlm.config.overrides import parse_overrides, parse_stop


def overrides(*assignments: str):
    errors: list[str] = []
    return parse_overrides(assignments, errors), errors


def test_sections_and_frame_keys_find_their_place():
    document, errors = overrides(
        "training.lr=1e-6",
        "rl_module.model_config.size=small",
        "config.training.gamma=1",
        "num_samples=2",
        "stop.env_runners/success_rate=0.5",
        "scheduler.max_t=3",
    )
    assert not errors
    assert document.data == {
        "config": {"training": {"lr": 1e-6, "gamma": 1}, "rl_module": {"model_config": {"size": "small"}}},
        "num_samples": 2,
        "stop": {"env_runners/success_rate": 0.5},
        "scheduler": {"max_t": 3},
    }


def test_values_are_yaml():
    document, _ = overrides("training.lr={grid_search: [1e-6, 1e-5]}", "a.b=[1, x]", "c.d=", "e.f=x=y")
    config = document.data["config"]
    assert config["training"]["lr"] == {"grid_search": [1e-6, 1e-5]}
    assert config["a"]["b"] == [1, "x"]
    assert config["c"]["d"] is None
    assert config["e"]["f"] == "x=y"


def test_the_last_of_two_wins():
    assert overrides("training.lr=1", "training.lr=2")[0].data["config"]["training"]["lr"] == 2


def test_only_what_was_set_is_marked_as_set():
    below = parse_yaml("config:\n  training:\n    lr: 1\n    gamma: 1\n", "f")
    merged = below.overlay(overrides("training.lr=2")[0])
    assert str(merged.mark(("config", "training", "lr"))) == "--set training.lr"
    assert str(merged.mark(("config", "training", "gamma"))) == "f:4"
    assert str(merged.mark(("config", "training"))) == "f:2"


@pytest.mark.parametrize("bad", ["training.lr", "=3", "training..lr=1", "lr=1", "training.lr=[1"])
def test_malformed_assignments_are_reported(bad: str):
    _, errors = overrides(bad)
    assert len(errors) == 1
    assert bad.split("=")[0] in errors[0]


def test_stop_takes_conditions_and_json():
    errors: list[str] = []
    assert parse_stop(["training_iteration=3", '{"a/b": 0.5}'], errors) == {
        "training_iteration": 3,
        "a/b": 0.5,
    }
    assert not errors
    parse_stop(["training_iteration", "x=abc"], errors)
    assert len(errors) == 2


def test_a_whole_section_can_be_set():
    document, errors = overrides("callbacks=[report]", "training={lr: 1}")
    assert not errors
    assert document.data == {"config": {"callbacks": ["report"], "training": {"lr": 1}}}


@pytest.mark.parametrize("bad", ["config=1", "config=", "include=[x]", "training=5", "training.lr={"])
def test_assignments_that_reach_nothing_are_one_error_each(bad: str):
    document, errors = overrides(bad)
    assert len(errors) == 1 and "--set" in errors[0]
    assert document.data == {}


@pytest.mark.parametrize("bad", ["x=.nan", "{x: abc}", "{training_iteration: [1]}", "{: 3}", "{}x"])
def test_stop_takes_numbers_only(bad: str):
    errors: list[str] = []
    assert parse_stop([bad], errors) == {}
    assert errors
