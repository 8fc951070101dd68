"""The gallery of real, tiny algorithms."""

from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import tiny_config

from rllib_vlm.callbacks import configured
from rllib_vlm.callbacks.gallery import _credit, _fetch
from rllib_vlm.errors import RLlibVLMError, UnknownNameError

pytestmark = pytest.mark.usefixtures("ray_cluster")


def gallery(config, **options):
    return config.callbacks(configured("gallery", **{"every": 1, **options}))


def train(algorithm, iterations=1) -> Path:
    """Trains, and returns the gallery's folder."""
    for _ in range(iterations):
        algorithm.train()
    return Path(algorithm.logdir) / "gallery"


@pytest.mark.parametrize(("name", "runners"), [("ppo", 1), ("grpo", 0)])
def test_training_and_evaluation_have_pages_with_frames_and_advantages(build, name, runners):
    config = tiny_config(name, observation="vision").env_runners(num_env_runners=runners)
    config.evaluation(evaluation_at=("start",))
    folder = train(build(gallery(config, episodes=3)))
    assert {p.name for p in folder.glob("*.html")} == {
        "index.html",
        "iteration_000001.html",
        "evaluation_000000.html",
    }
    training = (folder / "iteration_000001.html").read_text()
    assert training.count("<h2>") == 3
    assert training.count("data:image/webp") > 3
    assert "advantage +" in training or "advantage -" in training
    held_out = (folder / "evaluation_000000.html").read_text()
    assert "heldout/0" in held_out and "advantage +" not in held_out
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["images"]) == {"iteration/episode", "evaluation/episode"}


def test_demonstrations_are_shown_as_such(build):
    config = tiny_config("sft").warm_start(updates=1)
    page = (train(build(gallery(config))) / "iteration_000001.html").read_text()
    assert "demonstration" in page and "advantage +" not in page


def test_an_iteration_between_two_pages_has_none(build):
    folder = train(build(gallery(tiny_config("grpo"), every=3, tensorboard=False, video=False)), 4)
    names = {p.stem for p in folder.glob("iteration*.html")}
    assert names == {"iteration_000001", "iteration_000003"}


def test_advantages_are_those_of_the_estimator(build):
    algorithm = build(gallery(tiny_config("grpo", max_steps=2), episodes=4, video=False))
    algorithm.env_runner_group.foreach_env_runner(lambda runner: runner.sample(num_episodes=8))
    samples = _fetch(algorithm.env_runner_group, "train")
    assert len({s.episode.custom_data["group"] for s in samples}) == 1
    credit = _credit(algorithm, samples)
    assert [len(c) for c in credit] == [len(s.episode) for s in samples]
    returns = np.array([s.episode.get_return() for s in samples])
    expected = (returns - returns.mean()) / (returns.std(ddof=1) + 1e-6)
    np.testing.assert_allclose([c[0].advantages[0] for c in credit], expected, atol=1e-5)
    assert _fetch(algorithm.env_runner_group, "train") == []  # told once


def test_options_are_checked_where_they_are_written():
    with pytest.raises(RLlibVLMError, match="Did you mean 'every'"):
        configured("gallery", evry=3)
    with pytest.raises(RLlibVLMError, match="every is 0"):
        configured("gallery", every=0)
    with pytest.raises(UnknownNameError, match="Did you mean 'gallery'"):
        configured("galery")
