from typing import Self

import gymnasium as gym
import pytest
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.callbacks.callbacks import RLlibCallback

from rllib_vlm.config.document import parse_yaml
from rllib_vlm.config.sections import (
    apply_sections,
    check_env_config,
    environment_class,
    import_object,
    sections,
)
from rllib_vlm.errors import RLlibVLMError


class SpeechConfig(AlgorithmConfig):
    """A config class with a section and a keyword of its own, as plugins write them."""

    def speech(self, *, volume: float = NotProvided) -> Self:
        if volume is not NotProvided:
            if volume < 0:
                raise ValueError(f"volume must not be negative, got {volume}")
            self.volume = volume
        return self

    def training(self, *, patience: int = NotProvided, **kwargs) -> Self:
        super().training(**kwargs)
        self.patience = patience
        return self


class Narrow(gym.Env):
    def __init__(self, size: int = 3, **kwargs) -> None:
        self.size = size


class Wide(Narrow):
    def __init__(self, *, depth: int = 1, **kwargs) -> None:
        super().__init__(**kwargs)


class Closed(gym.Env):
    def __init__(self, size: int = 3) -> None:
        self.size = size


class Open(Closed):
    def __init__(self, *, depth: int = 1, **kwargs) -> None:
        super().__init__(**kwargs)


def apply(text: str):
    config, errors = SpeechConfig(), []
    apply_sections(config, parse_yaml(text, "f"), (), errors)
    return config, errors


def test_sections_are_the_builder_methods_own_ones_included():
    known = sections(SpeechConfig)
    assert {"training", "environment", "env_runners", "learners", "callbacks", "evaluation"} <= known.keys()
    assert known["speech"] == ("volume",)
    assert {"patience", "lr", "gamma"} <= set(known["training"]), "**kwargs hands the rest to the class above"
    assert not {"copy", "freeze", "validate", "build_algo", "update_from_dict", "to_dict"} & known.keys()


def test_keywords_rllib_no_longer_takes_are_unknown():
    assert "num_sgd_iter" not in sections(SpeechConfig)["training"]
    assert "num_rollout_workers" not in sections(SpeechConfig)["env_runners"]


def test_values_arrive_through_the_builder_methods():
    config, errors = apply("training: {lr: 1e-6, patience: 3}\nspeech: {volume: 0.5}\nlearners:\n")
    assert not errors
    assert (config.lr, config.patience, config.volume) == (1e-6, 3, 0.5)


def test_samplers_arrive_as_tunes_objects_also_inside_a_nested_dict():
    config, errors = apply(
        "rl_module: {model_config: {head: {width: {choice: [8, 16]}}}}\ntraining: {lr: {grid_search: [1]}}"
    )
    assert not errors
    assert config.model_config["head"]["width"].categories == [8, 16]
    assert config.lr == {"grid_search": [1]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\ntrainig: {lr: 1}", "f:2: unknown section 'trainig' of `config:`. Did you mean 'training'?"),
        ("lr: 1", "`lr` belongs under `training:`"),
        ("training:\n  lrr: 1", "f:2: training: unknown key 'lrr'. Did you mean 'lr'?"),
        ("training: {num_env_runners: 1}", "`num_env_runners` belongs under `env_runners:`"),
        ("training: {evaluation_intervall: 1}", "Did you mean 'evaluation_interval', under `evaluation:`?"),
        ("debugging: 3", "debugging: takes keywords (log_level"),
        ("speech:\n  volume: -1", "f:2: speech: volume must not be negative, got -1"),
        ("speech:\n  volume: {choice: [1]}", "may not take a sampler"),
        ("callbacks: [no.such:Thing]", "cannot import 'no.such'"),
        (
            "callbacks:\n  - report\n  - galery: {every: 5}",
            "f:3: callbacks_class: callbacks has no 'galery'. Did you mean 'g",
        ),
        ("callbacks: [{gallery: {evry: 5}}]", "callbacks: gallery takes no 'evry'. Did you mean 'every'?"),
        ("callbacks: {callbacks_class: [{gallery: {every: 0}}]}", "every is 0"),
        ("callbacks: [{gallery: 5}]", "not 5"),
        ("callbacks: {gallery: {evry: 5}}", "callbacks: gallery takes no 'evry'. Did you mean 'every'?"),
        ("grid_search: [1]", "It stands for a value: write it below a section's key"),
        ("training: {uniform: [0, 1]}", "It stands for a value, not for a section"),
        (
            "environment:\n  env_config: {choice: [{a: 1}]}",
            "f:2: env_config: choice stands for a value, not for all of",
        ),
        ("callbacks: [gallery, {report: {every: 5}}]", "report takes no 'every'"),
        ("training:\n  lr: {uniform: [2, 1]}", "f:2: training.lr: {uniform: [2, 1]}: lower"),
    ],
)
def test_a_mistake_says_where_and_what_was_meant(text: str, expected: str):
    _, errors = apply(text)
    assert len(errors) == 1
    assert expected in errors[0]


def test_all_mistakes_of_all_sections_are_collected():
    _, errors = apply("trainin: {}\nspeech: {volum: 1, loud: 2}\nenv_runners: {num_envs: 1}")
    assert len(errors) == 4


def test_callbacks_by_dotted_path_in_both_forms():
    path = "ray.rllib.callbacks.callbacks:RLlibCallback"
    for text in (f"callbacks: ['{path}']", f"callbacks: {{callbacks_class: ['{path}']}}"):
        config, errors = apply(text)
        assert not errors
        assert config.callbacks_class == [RLlibCallback]


def test_callbacks_take_options_beside_their_name():
    config, errors = apply("callbacks: [report, {gallery: {every: 5, video: false}, metrics: }]")
    assert not errors
    report, gallery, metrics = config.callbacks_class
    assert (report.__name__, gallery.func.__name__, metrics.__name__) == ("Report", "Gallery", "Metrics")
    assert gallery.keywords == {"every": 5, "video": False}
    path = "rllib_vlm.callbacks.gallery.Gallery"
    for name in (path, "rllib_vlm.callbacks.gallery:Gallery"):
        config, errors = apply(f"callbacks: [{{'{name}': {{every: 7}}}}]")
        assert not errors
        assert config.callbacks_class[0].keywords == {"every": 7}


def test_environments_go_by_simulator_gym_id_or_path():
    assert environment_class("frozen_lake").__name__ == "FrozenLake"
    assert environment_class("CartPole-v1").__name__ == "CartPoleEnv"
    assert environment_class("collections:OrderedDict").__name__ == "OrderedDict"
    with pytest.raises(RLlibVLMError, match="Did you mean 'frozen_lake'"):
        environment_class("frozen_lak")


def test_import_object_takes_colon_and_dot():
    assert import_object("collections:OrderedDict") is import_object("collections.OrderedDict")
    with pytest.raises(RLlibVLMError, match="has no 'Nothing'"):
        import_object("collections:Nothing")
    with pytest.raises(RLlibVLMError, match="package.module:Class"):
        import_object("word")


def env_config_errors(monkeypatch: pytest.MonkeyPatch, maker: type, text: str) -> list[str]:
    monkeypatch.setitem(gym.registry, "Test-v0", gym.envs.registration.EnvSpec("Test-v0", entry_point=maker))
    errors: list[str] = []
    check_env_config("Test-v0", parse_yaml(f"e: {text}", "f"), ("e",), errors)
    return errors


def test_env_config_is_checked_against_the_constructors(monkeypatch: pytest.MonkeyPatch):
    assert not env_config_errors(monkeypatch, Closed, "{size: 3}")
    assert not env_config_errors(monkeypatch, Open, "{size: 3, depth: {choice: [1]}}")
    (error,) = env_config_errors(monkeypatch, Open, "{sise: 3}")
    assert "f:1: env_config: 'Test-v0' takes no 'sise'. Did you mean 'size'?" in error
    assert not env_config_errors(monkeypatch, Wide, "{anything: 3}"), "keywords passed on to nobody known"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("environment:\n  env_config: abc", "f:2: env_config must be a mapping, not 'abc'"),
        ("evaluation:\n  evaluation_config: 5", "f:2: evaluation_config must be a mapping, not 5"),
        ("callbacks: [collections:OrderedDict]", "is no subclass of RLlibCallback"),
        ("env_runners: {env_runner_cls: collections:OrderedDict}", "is no subclass of EnvRunner"),
        ("training: {learner_class: os:system}", "is no class"),
    ],
)
def test_values_of_another_kind(text: str, words: str):
    _, errors = apply(text)
    assert len(errors) == 1 and words in errors[0]


def test_the_other_keywords_of_a_section_still_arrive():
    config, errors = apply("training:\n  lr: 0.5\n  lrr: 1\n  gamma: 0.25")
    assert len(errors) == 1 and (config.lr, config.gamma) == (0.5, 0.25)


def test_each_refused_keyword_is_told_at_its_line():
    _, errors = apply(
        "env_runners:\n  num_env_runners: 1\n  num_envs_per_env_runner: -1\n  rollout_fragment_length: x"
    )
    assert [e.split(": ")[0] for e in errors] == ["f:3", "f:4"]
