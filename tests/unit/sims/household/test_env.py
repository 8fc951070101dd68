"""The household environment: arguments, episodes, rewards, ends, observations."""

import math
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import rllib_vlm.sims
from rllib_vlm.errors import ConfigErrors, SimulatorError, UnknownNameError
from rllib_vlm.sims.household.env import Household
from rllib_vlm.sims.household.tasks import TASKS, TaskName
from rllib_vlm.sims.household.text_view import NEAR_M
from rllib_vlm.sims.household.world import ACTIONS


@pytest.fixture(scope="module")
def env() -> Iterator[Household]:
    """All tasks, text only (no rendering)."""
    e = Household(tasks=TASKS, observation="text")
    yield e
    e.close()


def solve(env: Household, limit: int = 60) -> tuple[float, dict[str, Any]]:
    """The planner plays; the rewards' sum and the last info."""
    expert, total = env.expert(max_actions=5, kind="planner"), 0.0
    for _ in range(limit):
        _, reward, terminated, truncated, info = env.turn(expert().actions)
        total += reward
        if terminated or truncated:
            return total, info
    raise AssertionError("the planner does not come to an end")


def test_registered_and_sound_for_gymnasium() -> None:
    rllib_vlm.sims.register()  # again does nothing
    made = gym.make("rllib_vlm/Household-v0", camera_size=(40, 30), render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(made.unwrapped)
    made.reset(seed=0)
    assert made.render().shape == (30, 80, 3)  # type: ignore[union-attr]
    made.close()


def test_gymnasium_alone_makes_it() -> None:
    code = "import gymnasium; gymnasium.make('rllib_vlm.sims:rllib_vlm/Household-v0', observation='text')"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_wrong_argument_is_named() -> None:
    with pytest.raises(ConfigErrors) as error:
        Household(
            split="tests", tasks=("Fecth", "RoomNav"), rooms=(1, 1), furniture=(3, 2), items=(0, 4),  # type: ignore[arg-type]
            observation="visoin", camera_size=(4, 4), reward="spock", reward_weights={"succes": 1},  # type: ignore[arg-type]
            max_steps={"Fetch": 0, "Fly": 3}, house_seeds=(5, 5), start="there", curriculum="c", world="w",  # type: ignore[arg-type,dict-item]
        )  # fmt: skip
    assert len(error.value.errors) == 15
    text = str(error.value)
    for hint in (
        "Did you mean 'Fetch'",
        "Did you mean 'vision'",
        "Did you mean 'spoc'",
        "Did you mean 'success'",
    ):
        assert hint in text


def test_action_space_is_spocs() -> None:
    assert len(ACTIONS) == 20
    assert ACTIONS.names[:6] == ("move_ahead", "rotate_right", "rotate_left", "move_back", "done", "sub_done")


def test_same_seed_and_options_same_episode(env: Household) -> None:
    def trace(seed: int, **options: Any) -> list[Any]:
        observation, info = env.reset(seed=seed, options=options)
        out: list[Any] = [observation["text"], info]
        for action in ("rotate_left", "move_ahead", "move_ahead", "arm_up", "pickup"):
            observation, reward, *_ = env.step(ACTIONS.index(action))
            out += [observation["text"], reward]
        return out

    assert trace(5) == trace(5)
    assert trace(5) != trace(6)
    assert trace(5, split="heldout")[1]["split"] == "heldout"
    assert trace(5, split="heldout")[1]["house"] != trace(5)[1]["house"]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_the_planner_succeeds_and_success_pays(env: Household, task: TaskName, split: str) -> None:
    env.reset(seed=7, options={"task": task, "split": split})
    total, info = solve(env)
    metrics = info["metrics"]
    assert info["success"] is True
    assert info["task"] == task
    assert total >= 10.0
    assert metrics["success"] == 1.0
    assert 0.5 < metrics["sel"] <= 1.0
    assert 0.5 < metrics["spl"] <= 1.0
    assert metrics["picked_up"] == (task in ("Fetch", "PickUp"))
    assert metrics["target_seen"] == (task in ("Fetch", "PickUp", "ObjectNav"))
    if task == "RoomVisit":
        assert metrics["rooms_marked"] == metrics["rooms_visited"] == len(env.episode.house.rooms)
    with pytest.raises(SimulatorError, match="reset"):
        env.step(0)


@pytest.mark.parametrize("task", TASKS)
def test_done_at_the_start_fails(env: Household, task: TaskName) -> None:
    seed = next(s for s in range(20) if not _starts_in_view(env, task, s))
    env.reset(seed=seed, options={"task": task})
    _, reward, terminated, truncated, info = env.turn(["done", "move_ahead"])
    assert (reward, terminated, truncated, info["success"]) == (0.0, True, False, False)
    assert info["metrics"]["episode_length"] == 1.0  # the turn's rest is cut


def _starts_in_view(env: Household, task: TaskName, seed: int) -> bool:
    env.reset(seed=seed, options={"task": task})
    return env.referee.succeeded()


def test_truncated_after_the_limit_and_idle_counts() -> None:
    env = Household(observation="text", max_steps=4, reward_weights={"horizon": -3.0, "step": -0.5})
    env.reset(seed=0)
    assert env.idle()[1:4] == (-0.5, False, False)
    *_, cut, info = env.turn([])
    assert cut is False and info["metrics"]["episode_length"] == 2.0 and info["metrics"]["success"] == 0.0
    _, reward, terminated, truncated, info = env.turn(["rotate_left", "rotate_right", "rotate_left"])
    assert (terminated, truncated, info["success"]) == (False, True, False)
    assert reward == pytest.approx(-4.0)
    assert info["metrics"]["episode_length"] == 4.0
    env.close()


def test_shaped_reward_of_a_fetch_adds_up(env: Household) -> None:
    _, info = env.reset(seed=11, options={"task": "Fetch"})
    start = env.episode.distance(env.episode.start.x, env.episode.start.y)
    total, info = solve(env)
    assert info["success"]
    # Success, graspable, held, all the way, and most of the last metre of the gripper.
    assert 20.0 + start + 2.5 < total <= 20.0 + start + 5.0 + 1e-6


def test_expert_length_is_what_the_planner_takes(env: Household) -> None:
    for seed in (69, 70, 71, 85):
        _, info = env.reset(seed=seed, options={"task": "Fetch"})
        _, last = solve(env)
        assert info["expert_length"] == pytest.approx(last["metrics"]["episode_length"], rel=0.35)


def test_actions_to_go_fall_by_what_the_planner_does(env: Household) -> None:
    for task in TASKS:
        _, info = env.reset(seed=70, options={"task": task})
        expert, left, took = env.expert(max_actions=5, kind="planner"), [info["state"]["actions_to_go"]], []
        assert left[0] == pytest.approx(info["expert_length"], rel=0.4)
        ended = False
        while not ended:
            actions = expert().actions
            _, _, ended, truncated, info = env.turn(actions)
            assert not truncated
            left.append(info["state"]["actions_to_go"])
            took.append(len(actions))
        assert info["success"]
        # An estimate from below: slips, detours and the last of a turn's steps come on top.
        assert left[0] <= 1.15 * sum(took)
        assert left[-2] <= 5.0


def test_the_planned_reward_is_a_potential() -> None:
    env = Household(observation="text", reward_weights={"planned": 0.5})
    plain = Household(observation="text")
    paid = []
    for turn in (
        ["rotate_left"] * 3,
        ["rotate_right"] * 3,
        ["move_ahead"],
        ["move_back"],
        [],
        ["arm_out"],
        ["arm_in"],
    ):
        if not paid:
            before = env.reset(seed=11)[1]["state"]["actions_to_go"]
            plain.reset(seed=11)
        _, reward, _, _, info = env.turn(turn)
        paid.append(reward - plain.turn(turn)[1])
    assert sum(paid) == pytest.approx(0.5 * (before - info["state"]["actions_to_go"]))
    assert min(paid) < 0.0 < max(paid)
    env.reset(seed=11)
    plain.reset(seed=11)
    assert solve(env)[0] - solve(plain)[0] == pytest.approx(0.5 * before)
    env.close()
    plain.close()


def test_sparse_reward_is_success_alone() -> None:
    env = Household(observation="text", reward="spoc_sparse")
    env.reset(seed=11)
    assert solve(env)[0] == 10.0
    env.close()


def test_vagen_ends_once_the_target_is_held() -> None:
    env = Household(observation="text", reward="vagen")
    env.reset(seed=11)
    total, info = solve(env)
    assert total == 10.0
    assert info["success"]
    assert env.referee.holds_target()
    env.reset(seed=11)
    x, y, _ = env.world.position(env.task.targets[0])
    env.world.place(x + 0.3, y, 0.0)  # type: ignore[attr-defined]
    _, reward, terminated, _, info = env.step(ACTIONS.index("sub_done"))
    assert (reward, terminated, info["success"]) == (10.0, True, True)
    env.close()


def test_room_visit_marks_each_room_once(env: Household) -> None:
    env.reset(seed=2, options={"task": "RoomVisit"})
    first, again = env.turn(["sub_done"]), env.turn(["sub_done"])
    assert (first[1], again[1]) == (2.0, -0.2)
    assert "failed sub_done" in again[0]["text"]
    env.reset(seed=2, options={"task": "Fetch"})
    assert "failed sub_done" in env.turn(["sub_done"])[0]["text"]


@pytest.mark.parametrize(("start", "farthest"), [("near", 1.2), ("same_room", 8.0), ("anywhere", 99.0)])
def test_starts(env: Household, start: str, farthest: float) -> None:
    for seed in range(6):
        env.reset(seed=seed, options={"task": "Fetch", "start": start})
        episode = env.episode
        item = episode.items[episode.task.targets[0]]
        assert episode.distance(episode.start.x, episode.start.y) <= farthest + 0.1
        if start != "anywhere":
            room = episode.house.room_at(item.x, item.y)
            assert room == episode.house.room_at(episode.start.x, episode.start.y)
        if start == "near":
            assert abs(episode.start.bearing(item.x, item.y)) <= 30.0


def test_curriculum_level_sets_the_start() -> None:
    env = Household(observation="text", curriculum="short_to_full_fetch")

    def kinds(**options: Any) -> list[str]:
        return [env.reset(seed=s, options=options)[1]["start"] for s in range(12)]

    assert kinds(level=0.0).count("near") >= 7
    assert set(kinds(level=1.0)) == {"anywhere"}
    assert set(kinds()) == {"anywhere"}  # no level: the full task, as in evaluation
    env.close()


def test_unknown_reset_options(env: Household) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'level'"):
        env.reset(options={"levl": 1})


def test_an_episode_takes_place_in_the_house_one_asks_for(env: Household) -> None:
    for house in (3, 123_456):
        for seed in (5, 6):
            info = env.reset(seed=seed, options={"house": house})[1]
            assert info["house"] == env.episode.house.seed == house
    first, info = env.reset(seed=5)
    again, again_info = env.reset(seed=5, options={"house": info["house"]})
    assert (again, again_info) == (first, info)  # no other draw depends on the option


def test_a_house_that_cannot_be_is_refused(env: Household) -> None:
    for wrong in (-1, "3", 1.5, True):
        with pytest.raises(SimulatorError, match="no house seed"):
            env.reset(seed=0, options={"house": wrong})
    alone = Household(observation="text", rooms=(1, 1))
    with pytest.raises(SimulatorError, match="house 3 .* allows no RoomNav task"):
        alone.reset(seed=0, options={"house": 3, "task": "RoomNav"})
    alone.close()


def test_step_before_reset() -> None:
    with pytest.raises(SimulatorError, match="reset"):
        Household().step(0)


def test_observation_modes() -> None:
    texts = {}
    for mode in ("vision", "text", "both"):
        env = Household(observation=mode, camera_size=(48, 32))  # type: ignore[arg-type]
        observation, _ = env.reset(seed=1)
        assert observation in env.observation_space
        assert ("images" in observation) == (mode != "text")
        if mode != "text":
            assert observation["images"].shape == (2, 32, 48, 3)
            assert observation["images"].std() > 5.0
        texts[mode] = observation["text"]
        env.close()
    assert texts["vision"] == "lift 70 arm 0 holding nothing ok"
    assert texts["text"] == texts["both"]
    assert texts["text"].endswith(texts["vision"])


def test_the_text_says_where_things_are(env: Household) -> None:
    """A line's bearing and distance are those of the thing it names, near the gripper to the centimetre."""
    env.reset(seed=3, options={"task": "Fetch", "start": "near"})
    target = env.episode.items[env.task.targets[0]]
    x, y, z = env.world.position(target.id)
    robot = env.world.robot
    observation, *_ = env.turn(["rotate_left_small"])
    lines = [line for line in observation["text"].split("; ") if line.startswith(env.task.thing)]
    assert lines, observation["text"]
    side, angle, decimetres = lines[0][len(env.task.thing) :].split()[:3]
    pose = env.scene.pose
    bearing = pose.bearing(x, y)
    assert side == ("left" if bearing > 1 else "right" if bearing < -1 else "ahead")
    distance = math.dist((robot.x, robot.y), (x, y))
    assert int(angle) == pytest.approx(abs(bearing), abs=1.01 if distance <= NEAR_M else 3.01)
    assert int(decimetres) == pytest.approx(10 * distance, abs=0.51)


def test_turn_renders_once(monkeypatch: pytest.MonkeyPatch) -> None:
    env = Household(camera_size=(32, 32))
    env.reset(seed=0)
    drawn = []
    world = env.world
    render = world.render
    monkeypatch.setattr(world, "render", lambda: drawn.append(1) or render())  # type: ignore[func-returns-value]
    env.turn(["rotate_left", "rotate_left", "move_ahead"])
    assert len(drawn) == 1
    env.close()


def test_close_and_go_on() -> None:
    env = Household(observation="text")
    first = env.reset(seed=4)[0]
    env.close()
    env.close()
    assert np.array_equal(first["text"], env.reset(seed=4)[0]["text"])
    env.close()


def test_the_expert_says_which_of_the_things_in_the_text_are_asked_for() -> None:
    env = Household(observation="text", tasks=["Fetch"], rooms=(2, 3))
    told = named = 0
    for seed in range(4):
        observation, _ = env.reset(seed=seed)
        expert, over = env.expert(max_actions=5), False
        targets = {f"{i.color} {i.type}" for i in env.episode.house.items if i.id in env.task.targets}
        while not over:
            shown = expert()
            listed = observation["text"].split("; ")
            for mention, line in zip(shown.mentions, listed[1:], strict=False):
                assert line.startswith(mention.words)
            assert len(shown.mentions) == len(listed) - 2
            told += len(shown.mentions)
            named += sum(m.named for m in shown.mentions)
            assert {m.words for m in shown.mentions if m.words in targets and not m.named} == set()
            observation, _, terminated, truncated, _ = env.turn(shown.actions)
            over = terminated or truncated
    env.close()
    assert 0 < named < told
    assert Household(observation="vision").mentions([]) == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"rooms": (float("inf"), 3)}, {"rooms": (1.9, 2.9)}, {"rooms": "23"}, {"rooms": (True, True)},
        {"rooms": (1, 7)}, {"rooms": {1: 2, 3: 4}},
        {"items": (5, 10**6)}, {"house_seeds": (0, 10**30)}, {"camera_size": (100_000, 100)},
        {"camera_size": (224, float("nan"))}, {"reward_weights": {"success": float("nan")}},
    ],
)  # fmt: skip
def test_what_is_no_whole_number_or_out_of_range_is_named(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigErrors) as caught:
        Household(**wrong, observation="tex")
    assert len(caught.value.errors) == 2
    assert any(name in error for error in caught.value.errors)
