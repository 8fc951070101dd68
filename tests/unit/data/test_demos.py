import io
import os
from functools import partial

import gymnasium as gym
import pytest
from rich.console import Console

from rllib_vlm.data import DemonstrationReader
from rllib_vlm.data.demos import collect
from rllib_vlm.errors import DataError, SimulatorError
from rllib_vlm.sims.frozen_lake import FrozenLake
from rllib_vlm.types import Demonstration

make_lake = partial(FrozenLake, size=4, observation="both", image_size=24)


def rows(folder):
    return [
        (
            e.index,
            e.task_seed,
            e.success,
            dict(e.metrics),
            [(t.text, t.demonstration, t.encoded_images) for t in e.turns],
        )
        for e in DemonstrationReader(folder).iterate(decode_images=False)
    ]


def collect_lake(folder, episodes=12, **kwargs):
    return collect(
        make_lake, folder, simulator="frozen_lake", episodes=episodes, episodes_per_shard=5, **kwargs
    )


def test_an_expert_fills_a_folder(tmp_path):
    manifest = collect_lake(tmp_path, seeds=40, max_actions=3)
    assert (manifest.episodes, manifest.successes) == (12, 12)
    reader = DemonstrationReader(tmp_path)
    episode = reader.read(0)
    assert episode.task_seed == 40
    assert episode.success and episode.terminated and not episode.truncated
    assert episode.instruction.startswith("Reach the gift")
    assert episode.metrics["spl"] == 1.0
    assert max(len(t.demonstration.actions) for e in reader for t in e.turns) == 3
    lake = make_lake()
    observation, _ = lake.reset(seed=40, options={"split": "train"})
    for turn in episode.turns:
        assert turn.text == observation["text"]
        assert (turn.images[0] == observation["images"][0]).all()
        observation, reward, *_ = lake.turn(turn.demonstration.actions)
        assert reward == turn.reward
    assert episode.final_text == observation["text"]


def test_content_does_not_depend_on_the_number_of_processes(tmp_path):
    one = collect_lake(tmp_path / "one")
    two = collect_lake(tmp_path / "two", processes=2)
    assert one == two
    assert rows(tmp_path / "one") == rows(tmp_path / "two")


class Interrupted(FrozenLake):
    """Raises at the reset of seed 7, as a user's Ctrl-C would; `broken` says whether it still does."""

    broken = True

    def reset(self, *, seed=None, options=None):
        if seed == 7 and type(self).broken:
            raise KeyboardInterrupt
        return super().reset(seed=seed, options=options)


def test_an_interrupted_collection_goes_on_where_it_stopped(tmp_path):
    make = partial(Interrupted, size=4, observation="both", image_size=24)
    kwargs = {"simulator": "frozen_lake", "episodes": 12, "episodes_per_shard": 5}
    with pytest.raises(KeyboardInterrupt):
        collect(make, tmp_path / "a", **kwargs)
    partly = DemonstrationReader(tmp_path / "a", allow_partial=True)
    assert partly.indices == tuple(range(7))
    Interrupted.broken = False
    try:
        output = io.StringIO()
        collect(make, tmp_path / "a", **kwargs, console=Console(file=output))
    finally:
        Interrupted.broken = True
    assert "12/12" in output.getvalue()
    collect_lake(tmp_path / "b")
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


class Killed(FrozenLake):
    """Its process dies at seed 7."""

    def reset(self, *, seed=None, options=None):
        if seed == 7:
            os._exit(9)
        return super().reset(seed=seed, options=options)


def test_a_process_that_dies_costs_no_finished_shard(tmp_path):
    with pytest.raises(SimulatorError, match="Run the same command again"):
        collect(
            partial(Killed, size=4),
            tmp_path,
            simulator="frozen_lake",
            episodes=10,
            episodes_per_shard=5,
            processes=2,
        )
    left = set(DemonstrationReader(tmp_path, allow_partial=True).indices)
    assert left <= set(range(5))  # whole shards only, and never the one that died
    manifest = collect(partial(FrozenLake, size=4), tmp_path, simulator="frozen_lake", episodes=10)
    assert manifest.episodes == 10


def test_a_simulator_that_raises_leaves_what_was_played(tmp_path):
    class Raises(FrozenLake):
        def reset(self, *, seed=None, options=None):
            if seed == 2:
                raise SimulatorError("no path in house 2")
            return super().reset(seed=seed, options=options)

    with pytest.raises(SimulatorError, match="house 2"):
        collect(partial(Raises, size=4), tmp_path, simulator="frozen_lake", episodes=4)
    assert DemonstrationReader(tmp_path, allow_partial=True).indices == (0, 1)


def test_an_expert_that_gives_up_is_recorded_as_such(tmp_path):
    class GivesUp(FrozenLake):
        def expert(self, *, max_actions=1):
            return lambda: Demonstration(actions=(), reasoning="no way there")

    manifest = collect(partial(GivesUp, size=4), tmp_path, simulator="frozen_lake", episodes=2)
    assert (manifest.episodes, manifest.successes) == (2, 0)
    episode = DemonstrationReader(tmp_path).read(0)
    assert episode.truncated and not episode.success and len(episode.turns) == 1
    assert episode.turns[0].demonstration.reasoning == "no way there"


def test_no_expert_and_too_few_seeds_are_errors(tmp_path):
    class NoExpert(FrozenLake):
        def expert(self, *, max_actions=1):
            return None

    with pytest.raises(SimulatorError, match="NoExpert has no expert"):
        collect(partial(NoExpert, size=4), tmp_path / "a", simulator="x", episodes=2)
    with pytest.raises(DataError, match="3 episodes"):
        collect(make_lake, tmp_path / "b", simulator="x", episodes=3, seeds=[1, 2])


def test_held_out_tasks_are_another_folder(tmp_path):
    collect_lake(tmp_path / "train", episodes=3)
    collect_lake(tmp_path / "heldout", episodes=3, split="heldout")
    train, heldout = (DemonstrationReader(tmp_path / s).read(0).turns[0].text for s in ("train", "heldout"))
    assert train != heldout
    assert isinstance(make_lake(), gym.Env)
