"""Frozen lake: maps, moves, rewards, expert, and that the seed decides everything."""

from __future__ import annotations

import warnings
from typing import Any

import networkx as nx
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from rllib_vlm.errors import ConfigErrors, SimulatorError
from rllib_vlm.sims.frozen_lake import FrozenLake, Lake, draw_tiles

LEFT, DOWN, RIGHT, UP = range(4)


def placed(rows: str, **options: Any) -> FrozenLake:
    """A simulator whose episode has the map given as symbols."""
    grid = np.array([list(row) for row in rows.split()])
    sim = FrozenLake(size=len(grid), observation="both", **options)
    sim.reset(seed=0)
    cells = {s: tuple(int(i) for i in np.argwhere(grid == s)[0]) for s in "PG"}
    sim.lake = Lake(grid == "O", cells["P"], cells["G"])  # type: ignore[arg-type]
    sim._far = sim.lake.distances()
    sim.position = sim.lake.start
    return sim


def play(sim: FrozenLake, seed: int, **options: Any) -> list[tuple[str, bytes, float]]:
    """A whole episode under a fixed choice of actions."""
    observation, _ = sim.reset(seed=seed, options=options)
    choose = np.random.default_rng(0)
    seen, over, reward = [], False, 0.0
    while True:
        seen.append((observation["text"], observation["images"].tobytes(), reward))
        if over:
            return seen
        observation, reward, terminated, truncated, _ = sim.step(int(choose.integers(4)))
        over = terminated or truncated


@pytest.mark.parametrize("observation", ["vision", "text", "both"])
def test_it_is_a_gymnasium_environment(observation: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        check_env(FrozenLake(observation=observation, render_mode="rgb_array"), skip_render_check=True)


@pytest.mark.parametrize("slippery", [False, True])
def test_the_seed_decides_the_whole_episode(slippery: bool) -> None:
    one = FrozenLake(observation="both", slippery=slippery)
    other = FrozenLake(observation="both", slippery=slippery)
    play(one, 99)  # a history of its own must not matter
    assert play(one, 7) == play(other, 7)
    firsts = {play(one, seed)[0][0] for seed in range(20)}
    assert len(firsts) > 15


@pytest.mark.parametrize("size", [3, 4, 8])
@pytest.mark.parametrize("hole_probability", [0.0, 0.2, 0.6])
def test_the_expert_solves_every_map_by_a_shortest_path(size: int, hole_probability: float) -> None:
    sim = FrozenLake(size=size, hole_probability=hole_probability, max_steps=size * size)
    for seed in range(20):
        sim.reset(seed=seed)
        assert sim.lake is not None
        ice = nx.grid_2d_graph(size, size)
        ice.remove_nodes_from((int(r), int(c)) for r, c in np.argwhere(sim.lake.holes))
        shortest = nx.shortest_path_length(ice, sim.lake.start, sim.lake.goal)
        expert, steps, total = sim.expert(max_actions=3), 0, 0.0
        terminated = truncated = False
        while not (terminated or truncated):
            actions = expert().actions
            assert 1 <= len(actions) <= 3
            steps += len(actions)
            _, reward, terminated, truncated, info = sim.turn(actions)
            total += reward
        assert info["success"] is True
        assert steps == shortest
        assert total == 1.0
        assert info["metrics"] == {"steps": float(shortest), "fell": 0.0, "spl": 1.0}
        assert expert().actions == ()


def test_splits_share_no_map_and_levels_bound_the_way() -> None:
    sim = FrozenLake(size=3)
    maps: dict[str, set[bytes]] = {"train": set(), "heldout": set()}
    for split, seen in maps.items():
        for seed in range(300):
            sim.reset(seed=seed, options={"split": split})
            assert sim.lake is not None
            seen.add(sim.lake.holes.tobytes() + bytes(sim.lake.goal))
    assert min(map(len, maps.values())) > 20
    assert not maps["train"] & maps["heldout"]
    lengths = {}
    for level in (0.0, 0.5, 1.0):
        ways = []
        for seed in range(60):
            sim.reset(seed=seed, options={"level": level})
            ways.append(len(sim.shortest_path()))
        lengths[level] = max(ways)
    assert lengths[0.0] == 1
    assert 1 < lengths[0.5] < lengths[1.0]


def test_moves_edges_and_reward() -> None:
    sim = placed("P_O ___ O_G", success_reward=2.0, step_reward=-0.125)
    observation, reward, terminated, truncated, info = sim.step(LEFT)
    assert observation["text"] == "P _ O\n_ _ _\nO _ G"
    assert (reward, terminated, truncated, info.keys()) == (-0.125, False, False, {"metrics", "state"})
    for action in (DOWN, RIGHT, DOWN):
        sim.step(action)
    observation, reward, terminated, truncated, info = sim.step(RIGHT)
    assert observation["text"] == "_ _ O\n_ _ _\nO _ V"
    assert (reward, terminated, truncated) == (1.875, True, False)
    assert info["metrics"] == {"steps": 5.0, "fell": 0.0, "spl": 0.8}
    with pytest.raises(SimulatorError, match="over"):
        sim.step(LEFT)  # a second visit to the gift must not pay again
    with pytest.raises(SimulatorError, match="over"):
        sim.idle()


def test_falling_ends_the_episode_and_the_turn() -> None:
    sim = placed("P_O ___ O_G", hole_reward=-1.0)
    observation, reward, terminated, _, info = sim.turn(["right", "right", "down", "down"])
    assert observation["text"] == "_ _ X\n_ _ _\nO _ G"
    assert (reward, terminated, info["success"]) == (-1.0, True, False)
    assert info["metrics"] == {"steps": 2.0, "fell": 1.0, "spl": 0.0}


def test_idling_takes_time_and_time_runs_out() -> None:
    sim = placed("P_O ___ O_G", max_steps=2)
    before = sim.position
    assert sim.turn([])[2:4] == (False, False)
    _, reward, terminated, truncated, info = sim.idle()
    assert (reward, terminated, truncated, info["success"]) == (0.0, False, True, False)
    assert sim.position == before


def test_slippery_ice_never_goes_backwards_and_slides_a_third_to_each_side() -> None:
    sim = placed("___ _P_ __G", slippery=True, max_steps=10_000)
    ends = []
    for _ in range(1500):
        sim.position = (1, 1)
        sim.step(UP)
        ends.append(sim.position)
    shares = {cell: ends.count(cell) / len(ends) for cell in set(ends)}
    assert set(shares) == {(0, 1), (1, 0), (1, 2)}
    assert all(share == pytest.approx(1 / 3, abs=0.05) for share in shares.values())
    assert len(sim.expert(max_actions=4)().actions) == 1


def test_every_state_looks_different() -> None:
    for pixels in (6, 21, 56):
        tiles = draw_tiles(pixels)
        assert len({tile.tobytes() for tile in tiles.values()}) == 6
    assert draw_tiles(21)["P"].shape == (21, 21, 3)


@pytest.mark.parametrize(("size", "image_size"), [(4, 84), (5, 84), (3, 224)])
def test_the_picture_shows_what_the_text_says(size: int, image_size: int) -> None:
    sim = FrozenLake(size=size, image_size=image_size, observation="both")
    observation, _ = sim.reset(seed=1)
    assert observation["images"].shape == (1, image_size, image_size, 3)
    pixels = image_size // size
    margin = (image_size - pixels * size) // 2
    tiles = draw_tiles(pixels)
    for r, row in enumerate(observation["text"].split("\n")):
        for c, symbol in enumerate(row.split()):
            y, x = margin + r * pixels, margin + c * pixels
            np.testing.assert_array_equal(
                observation["images"][0, y : y + pixels, x : x + pixels], tiles[symbol]
            )


def test_the_demonstration_tells_where_things_are() -> None:
    demonstration = placed("P_O ___ O_G").expert(max_actions=1)()
    assert demonstration.observation == (
        "I am at row 1 column 1, the gift is at row 3 column 3, holes are at row 1 column 3, row 3 column 1."
    )
    assert demonstration.reasoning == "The shortest safe way is down, right, down, right."
    assert demonstration.prediction == "I will be at row 2 column 1."


def test_wrong_arguments_are_named_all_at_once() -> None:
    with pytest.raises(ConfigErrors) as error:
        FrozenLake(size=2, hole_probability=1, observation="smell", image_size=4, max_steps=0)  # type: ignore[arg-type]
    assert len(error.value.errors) == 5
    sim = FrozenLake()
    with pytest.raises(SimulatorError, match="begun"):
        sim.step(0)
    with pytest.raises(SimulatorError, match="split"):
        sim.reset(options={"split": "test"})
    with pytest.raises(SimulatorError, match="level"):
        sim.reset(options={"level": 2})


def test_arguments_of_any_kind_are_checked_all_at_once():
    with pytest.raises(ConfigErrors) as error:
        FrozenLake.check_config(
            dict.fromkeys(("size", "slippery", "image_size", "max_steps", "hole_reward"), "x")
        )
    assert len(error.value.errors) == 5
    FrozenLake.check_config({"size": 5})
