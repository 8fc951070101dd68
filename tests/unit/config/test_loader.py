from pathlib import Path

import pytest
from ray.rllib.algorithms.ppo import PPO

from rllib_vlm.config.loader import from_names, load, validate
from rllib_vlm.errors import ConfigErrors

# RLlib's own PPO stands in for any algorithm here: sections are looked up, never known by name.
BASE = """
first:
  run: PPO
  env: CartPole-v1
  stop: {training_iteration: 3}
  config:
    training: {lr: 1e-4, train_batch_size_per_learner: 100, minibatch_size: 50}
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "x.yaml") -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    return write


def problems(file: Path, **kwargs) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        load(file, **kwargs)
    return caught.value.errors


def test_a_file_becomes_experiments(write):
    second = BASE.replace("first:", "second:").replace("1e-4", "{grid_search: [1e-4, 1e-3]}")
    first, second = load(write(BASE + second))
    assert (first.name, first.algorithm, first.env) == ("first", PPO, "CartPole-v1")
    assert first.stop == {"training_iteration": 3}
    assert first.config.lr == 1e-4
    assert second.config.lr == {"grid_search": [1e-4, 1e-3]}
    assert first.config.env == "CartPole-v1"


def test_the_command_line_goes_on_top(write):
    (experiment,) = load(
        write(BASE), overrides=["training.lr=1e-3", "mode=max", "metric=m"], stop=["a=1"], num_samples=5
    )
    assert experiment.config.lr == 1e-3
    assert (experiment.metric, experiment.mode, experiment.num_samples) == ("m", "max", 5)
    assert experiment.stop == {"training_iteration": 3, "a": 1}


def test_three_mistakes_are_three_messages_with_lines(write):
    text = BASE.replace("training_iteration: 3", "training_iteration: three").replace("lr: 1e-4", "lrr: 1e-4")
    errors = problems(write(text.replace("CartPole-v1", "CartPol-v1")))
    assert len(errors) == 3
    for line, words in ((4, "CartPole-v1"), (5, "stop.training_iteration"), (7, "'lrr'. Did you mean 'lr'")):
        assert any(f"x.yaml:{line}: " in e and words in e for e in errors), (line, errors)


def test_an_unknown_algorithm_is_named_with_its_place(write):
    (error,) = problems(write(BASE.replace("run: PPO", "run: VLMPP")))
    assert "x.yaml:3: " in error
    assert "Did you mean 'VLMPPO'" in error


def test_what_the_algorithm_refuses_is_found_before_anything_runs(write):
    (error,) = problems(write(BASE.replace("minibatch_size: 50", "minibatch_size: {grid_search: [50, 400]}")))
    assert "x.yaml:7: config at " in error
    assert "minibatch_size=400" in error


def test_fragments_stand_below_the_experiment_and_above_each_other(write):
    write("config:\n  training: {lr: 0.1, gamma: 0.5, lambda_: 0.5}\n", "parts/a.yaml")
    write("config:\n  training: {lr: 0.2, gamma: 0.6}\nnum_samples: 4\n", "parts/b.yaml")
    text = BASE.replace("  run:", "  include: [parts/a, parts/b.yaml]\n  run:")
    (experiment,) = load(write(text))
    config = experiment.config
    assert (config.lr, config.gamma, config.lambda_, experiment.num_samples) == (1e-4, 0.6, 0.5, 4)


def test_mistakes_in_a_fragment_name_the_fragment(write):
    write("config:\n  training:\n    gama: 0.5\ninclude: [b]\n", "a.yaml")
    errors = problems(write(BASE.replace("  run:", "  include: [a, models/tinny]\n  run:")))
    assert any("a.yaml:3: training: unknown key 'gama'" in e for e in errors)
    assert any("a.yaml:4: a fragment includes nothing itself" in e for e in errors)
    assert any("x.yaml:3: include: no fragment 'models/tinny'" in e and "'models/tiny'" in e for e in errors)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "maps experiment names"),
        ("run: PPO\nenv: x", "name is missing above `run:`"),
        ("a: 3", "experiment 'a' must be a mapping, not 3"),
        ("a: {run: PPO\n", "not YAML"),
    ],
)
def test_files_of_another_shape(write, text: str, words: str):
    assert any(words in e for e in problems(write(text)))


def test_missing_files_and_other_suffixes(tmp_path: Path, write):
    assert "No such file" in problems(tmp_path / "none.yaml")[0]
    assert "ends in .yaml" in problems(write("", "x.txt"))[0]


def test_python_files_define_config_and_maybe_stop(write):
    text = "from ray.rllib.algorithms.ppo import PPOConfig\nconfig = PPOConfig().environment('CartPole-v1')\n"
    (experiment,) = load(
        write(text + "stop = {'training_iteration': 2}\n", "x.py"), overrides=["training.gamma=0.5"]
    )
    assert (experiment.name, experiment.algorithm, experiment.env) == ("x", PPO, "CartPole-v1")
    assert (experiment.config.gamma, experiment.stop) == (0.5, {"training_iteration": 2})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "must define `config`"),
        ("x = 1\nraise KeyError('k')", "x.py:2: KeyError: 'k'"),
        ("x = (\n", "x.py:1: SyntaxError"),
        (
            "from ray.rllib.algorithms.ppo import PPOConfig\nconfig = PPOConfig()\nstop = 3",
            "`stop` must be a dict",
        ),
        (
            "from ray.rllib.algorithms.ppo import PPOConfig\nconfig = PPOConfig()\nstop = {'a': 'b'}",
            "`stop` must be a dict of metric to number",
        ),
        (
            "from ray.rllib.algorithms.ppo import PPOConfig\nconfig = PPOConfig()\nnum_samples = 'many'",
            "`num_samples` must be a whole number above 0, not 'many'",
        ),
        ("x = 1\nraise SystemExit(0)", "x.py:2: SystemExit: 0"),
    ],
)
def test_mistakes_in_python_files(write, text: str, words: str):
    assert words in problems(write(text, "x.py"))[0]


def test_from_names_takes_defaults_and_overrides():
    experiment = from_names(
        "PPO", "CartPole-v1", overrides=["training.gamma=0.5"], stop=["training_iteration=1"]
    )
    assert (experiment.name, experiment.config.gamma) == ("PPO_CartPole-v1", 0.5)
    with pytest.raises(ConfigErrors, match="Did you mean 'VLMPPO'"):
        from_names("VLMPO", "CartPole-v1")


def test_validate_names_experiments_and_checks_fragments(write):
    assert validate(write(BASE)) == ["first"]
    assert validate(write("config: {training: {lr: 1e-4}}", "part.yaml")) == []
    with pytest.raises(ConfigErrors, match="Did you mean 'lr'"):
        validate(write("config: {training: {lrr: 1e-4}}", "part.yaml"))


OURS = """\
x:
  run: VLMGRPO
  env: {env}
  include: [models/tiny_text, hardware/cpu_2]
  config:
    environment:
      env_config: {env_config}
    prompting: {{{prompting}}}
"""


def ours(
    env: str = "spoc", env_config: str = "{observation: text}", prompting: str = "observation: text"
) -> str:
    return OURS.format(env=env, env_config=env_config, prompting=prompting)


def test_a_wrong_key_hides_neither_a_wrong_value_nor_what_the_simulator_refuses(write):
    errors = problems(write(ours(env_config="{tasks: [Fecth]}", prompting="parsr: json, history: last_0")))
    assert len(errors) == 3
    assert any("x.yaml:8: prompting: unknown key 'parsr'. Did you mean 'parser'?" in e for e in errors)
    assert any("x.yaml:8: config: history: k is 0" in e for e in errors)
    assert any("x.yaml:7: config: env_config: tasks='Fecth'. Did you mean 'Fetch'?" in e for e in errors)


def test_the_simulator_says_everything_at_once_and_starts_nothing(write):
    errors = problems(write(ours(env_config="{tasks: [Fecth], rooms: [3, 2], questions: -1, roms: 1}")))
    for words in ("tasks='Fecth'", "rooms=[3, 2]", "questions=-1", "takes no 'roms'. Did you mean 'rooms'?"):
        assert sum(words in e for e in errors) == 1, words
    assert len(errors) == 4


def test_the_simulator_is_asked_about_every_variant(write):
    errors = problems(write(ours("frozen_lake", "{size: {grid_search: [4, 99, abc]}, observation: text}")))
    assert [e.split("config at ")[1].split(":")[0] for e in errors] == [
        "env_config.size=99",
        "env_config.size=abc",
    ]


def test_a_message_points_at_the_file_that_holds_the_value(write):
    (error,) = problems(write(ours(prompting="observation: text, history: last_k_4")))
    assert "x.yaml:8: config: history: histories has no 'last_k_4'" in error
    (error,) = problems(write(ours() + "    simulation:\n      process: thread\n"))
    assert "x.yaml:10: config: simulator_process is 'thread'" in error


def test_without_a_fragment_nothing_it_would_have_said_seems_missing(write):
    (error,) = problems(write(ours().replace("models/tiny_text", "models/tiny_txt")))
    assert "Did you mean 'models/tiny_text'?" in error


def test_an_experiment_file_is_no_fragment(write):
    (error,) = problems(write(ours().replace("models/tiny_text", "x")))
    assert "x.yaml:4: include: 'x' is an experiment file, not a fragment" in error


@pytest.mark.parametrize("name", ["a" * 5000, "..", "''"])
def test_a_fragment_that_cannot_be_a_file_is_not_found(write, name: str):
    assert any("include: no fragment" in e for e in problems(write(ours().replace("models/tiny_text", name))))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("env: spoc", "env: '.a:b'", "is not a path to a class"),
        ("env: spoc", "env: collections:OrderedDict", "is no simulator"),
        ("  env: spoc\n", "", "x.yaml:1: `env:` is missing"),
        ("run: VLMGRPO", "run: '.a:b'", "is not a path to a class"),
        ("run: VLMGRPO", "run: os:system", "is no subclass of RLlib's Algorithm"),
    ],
)
def test_paths_that_lead_to_something_else(write, old: str, new: str, words: str):
    (error,) = problems(write(ours().replace(old, new)))
    assert words in error


def test_a_wrong_algorithm_and_a_missing_fragment_hide_nothing_else(write):
    text = """
bad:
  run: VLMGRP
  env: frozen_lak
  include: [models/tiny_text, hardware/cpu_3]
  stop: {training_iteration: .nan}
  config:
    promting: {parser: json}
    training: {total_update: 3, lr: fast}
"""
    found = "\n".join(problems(write(text)))
    for words in (
        "'VLMGRPO'",
        "'frozen_lake'",
        "'hardware/cpu_2'",
        "is nan",
        "'prompting'",
        "'total_updates'",
        "'fast'",
    ):
        assert words in found, (words, found)


@pytest.mark.parametrize("value", [".inf", "-5", "true", "0"])
def test_a_stop_that_no_run_reaches_or_every_run_does_is_refused(write, value: str):
    (error,) = problems(
        write(ours().replace("run: VLMGRPO", f"run: VLMGRPO\n  stop: {{training_iteration: {value}}}"))
    )
    assert "training_iteration" in error
    with pytest.raises(ConfigErrors, match="training_iteration"):
        load(write(ours()), stop=[f"training_iteration={value}"])


def test_validate_checks_what_the_command_line_puts_on_top(write):
    with pytest.raises(ConfigErrors, match="fast"):
        validate(write(ours()), overrides=["training.lr=fast"])
