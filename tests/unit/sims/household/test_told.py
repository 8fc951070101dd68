"""What an observation in words tells: everything, or what matters to the task."""

from __future__ import annotations

import math

import pytest

from rllib_vlm.errors import ConfigErrors
from rllib_vlm.sims.household.env import Household
from rllib_vlm.sims.household.tasks import named_receptacles
from rllib_vlm.sims.household.text_view import ways


def test_what_matters_is_told_as_the_expert_sees_it_and_nothing_else_is() -> None:
    env = Household(observation="text", told="task_relevant")
    counts = dict.fromkeys(
        ("target", "no target", "receptacle", "no receptacle", "door", "held", "at gripper"), 0
    )
    for seed in range(6):
        observation, _ = env.reset(seed=seed)
        expert = env.expert(max_actions=5)
        receptacles = named_receptacles(env.episode.house, env.task)
        for _ in range(40):
            room, *parts, free, proprioception = observation["text"].split("; ")
            assert room == (f"in the {env.scene.room.type}" if env.scene.room else "in a doorway")
            assert proprioception.startswith("lift ")
            assert free == ways(env.scene)
            counts["at gripper"] += any(p.endswith(" at gripper") for p in parts)
            seen = {s.id: s for s in env.scene.look()}
            holds = env.world.robot.held in env.task.targets
            for words, ids, kind in (
                (env.task.thing, env.task.targets, "target"),
                (env.task.receptacle, receptacles, "receptacle"),
            ):
                if not words or (kind == "target" and holds):
                    continue
                near = env.world.graspable()
                places = ["at gripper" if i in near else env.where(seen[i]) for i in ids if i in seen]
                told = parts.pop(0)
                assert told.removeprefix(f"{words} ") in (places or ["not seen"])
                counts[kind if places else f"no {kind}"] += 1
            doors = [s for s in seen.values() if s.kind == "door"]
            assert sorted(parts) == sorted(f"{d.words} {env.where(d)}" for d in doors)
            counts["door"] += len(doors)
            counts["held"] += holds
            shown = expert()
            if (
                not holds and env.task.thing
            ):  # nothing the expert tells of its target is more than the policy is told
                target = shown.observation.split("; ")[0]
                assert target in observation["text"]
            assert shown.mentions == ()
            observation, _, terminated, truncated, _ = env.turn(shown.actions)
            if terminated or truncated:
                break
    assert min(counts.values()) > 0, counts
    env.close()


def test_a_wrong_choice_is_told_with_the_right_ones() -> None:
    with pytest.raises(ConfigErrors, match=r"(?s)told.*task_relevent.*task_relevant"):
        Household(told="task_relevent")  # type: ignore[arg-type]


def test_the_way_told_to_be_free_is_as_far_as_the_robot_gets() -> None:
    env = Household(observation="text", told="task_relevant")
    blocked = 0
    for seed in range(12):
        env.reset(seed=seed)
        at = env.scene.pose.point
        ahead = _free(env)[3]
        for _ in range(5):
            env.turn(["move_ahead"])
        driven = math.dist(at, env.scene.pose.point)
        assert driven >= min(ahead, 1.0) - 0.08, (seed, ahead, driven)
        if ahead <= 0.5:
            blocked += 1
            assert driven < 0.8, (seed, ahead, driven)  # it may slide along what is in the way
    assert blocked > 0
    env.close()


def test_beside_furniture_the_way_out_is_told() -> None:
    env = Household(observation="text", told="task_relevant")
    close = 0
    for seed in range(12):
        env.reset(seed=seed)
        for _ in range(6):
            env.turn(["move_ahead"] * 5)
        if env.scene.nav.clearance_at(*env.scene.pose.point) >= env.scene.nav.radius - 0.02:
            continue  # it came to no standstill, or at an angle
        close += 1
        ahead, behind = _free(env)[3], _free(env)[-1]
        assert ahead < behind, (seed, ahead, behind)
        at = env.scene.pose.point
        env.turn(["move_back"] * 3)
        assert math.dist(at, env.scene.pose.point) >= min(behind, 0.6) - 0.08, (seed, behind)
    assert close > 3
    env.close()


def _free(env: Household) -> list[float]:
    """Metres."""
    return [int(dm) / 10 for dm in ways(env.scene).split()[1:]]
