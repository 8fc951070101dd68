"""Tours: many things from many viewpoints, whatever is done."""

from __future__ import annotations

import numpy as np
import pytest

from rllib_vlm.sims.household.env import Household
from rllib_vlm.sims.household.tour import TOUR_ITEMS, TOUR_TURNS


@pytest.fixture(scope="module")
def env():
    env = Household(rooms=(1, 2))
    yield env
    env.close()


def take(env: Household, seed: int, actions: tuple[str, ...] = ("move_ahead",)) -> list:
    observation, _ = env.reset(seed=seed, options={"tour": True})
    guide = env.expert(max_actions=5)
    seen = [(observation["images"], guide())]
    over = False
    while not over:
        observation, reward, terminated, over, info = env.turn(actions)
        assert (reward, terminated) == (0.0, False)
        seen.append((observation["images"], guide()))
    assert info["success"] is False and len(seen) == TOUR_TURNS + 1
    return seen


def test_a_tour_shows_a_crowded_house_from_everywhere(env: Household) -> None:
    seen = take(env, 3)
    assert TOUR_ITEMS[0] <= len(env.episode.house.items) <= TOUR_ITEMS[1]
    assert len({images.tobytes() for images, _ in seen}) == len(seen)
    shown = {d.words for _, said in seen for d in said.detections}
    assert len(shown & {f"{i.color} {i.type}" for i in env.episode.house.items}) >= 10
    assert all(said.actions for _, said in seen)  # an expert without actions would have given up
    assert any(d.image == 1 for _, said in seen for d in said.detections)


def test_a_tour_follows_from_its_seed_and_not_from_what_is_done(env: Household) -> None:
    first, again, other = take(env, 3), take(env, 3, ()), take(env, 4)
    for (a, _), (b, _) in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[0][0], other[0][0])


def test_after_a_tour_episodes_are_what_they_were(env: Household) -> None:
    before = env.reset(seed=5)
    take(env, 5)
    after = env.reset(seed=5)
    assert before[1] == after[1]
    np.testing.assert_array_equal(before[0]["images"], after[0]["images"])
    assert env.turn(["done"])[2] is True
