"""What an observation in words tells: everything, or what matters to the task."""

from __future__ import annotations

import pytest

from rllib_vlm.errors import ConfigErrors
from rllib_vlm.sims.household.env import Household
from rllib_vlm.sims.household.tasks import named_receptacles


def test_what_matters_is_told_as_the_expert_sees_it_and_nothing_else_is() -> None:
    env = Household(observation="text", told="task_relevant")
    counts = dict.fromkeys(("target", "no target", "receptacle", "no receptacle", "door", "held"), 0)
    for seed in range(6):
        observation, _ = env.reset(seed=seed)
        expert = env.expert(max_actions=5)
        receptacles = named_receptacles(env.episode.house, env.task)
        for _ in range(40):
            room, *parts, proprioception = observation["text"].split("; ")
            assert room == (f"in the {env.scene.room.type}" if env.scene.room else "in a doorway")
            assert proprioception.startswith("lift ")
            seen = {s.id: s for s in env.scene.look()}
            holds = env.world.robot.held in env.task.targets
            for words, ids, kind in (
                (env.task.thing, env.task.targets, "target"),
                (env.task.receptacle, receptacles, "receptacle"),
            ):
                if not words or (kind == "target" and holds):
                    continue
                places = [env.where(seen[i]) for i in ids if i in seen]
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
                assert "at gripper" in target or target in observation["text"]
            assert shown.mentions == ()
            observation, _, terminated, truncated, _ = env.turn(shown.actions)
            if terminated or truncated:
                break
    assert min(counts.values()) > 0, counts
    env.close()


def test_a_wrong_choice_is_told_with_the_right_ones() -> None:
    with pytest.raises(ConfigErrors, match=r"(?s)told.*task_relevent.*task_relevant"):
        Household(told="task_relevent")  # type: ignore[arg-type]
