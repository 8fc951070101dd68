"""The experts: they solve the tasks, say what is true, and the searching one knows only what it saw."""

from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest

from rllib_vlm.errors import UnknownNameError
from rllib_vlm.sims.household.env import Household
from rllib_vlm.sims.household.expert import ExpertKind, HouseholdExpert
from rllib_vlm.sims.household.phrases import PREDICTIONS
from rllib_vlm.sims.household.scene import CAMERAS, is_seen
from rllib_vlm.sims.household.tasks import TASKS, TaskName
from rllib_vlm.types import Demonstration

MAX_ACTIONS = 5


@pytest.fixture(scope="module")
def env() -> Iterator[Household]:
    e = Household(tasks=TASKS, observation="text")
    yield e
    e.close()


def expert(env: Household, kind: ExpertKind = "search") -> HouseholdExpert:
    made = env.expert(max_actions=MAX_ACTIONS, kind=kind)
    assert isinstance(made, HouseholdExpert)
    return made


def play(env: Household, teacher: HouseholdExpert, limit: int = 100) -> Iterator[Demonstration]:
    """The expert's turns, each before it is carried out; ends with the episode."""
    for _ in range(limit):
        demonstration = teacher()
        yield demonstration
        _, _, terminated, truncated, _ = env.turn(demonstration.actions)
        if terminated or truncated:
            return


@pytest.mark.parametrize("kind", get_args(ExpertKind))
@pytest.mark.parametrize("task", TASKS)
def test_solves_nearly_all(env: Household, kind: ExpertKind, task: TaskName) -> None:
    solved = []
    for seed in range(6):
        env.reset(seed=100 + seed, options={"task": task, "split": ("train", "heldout")[seed % 2]})
        for demonstration in play(env, expert(env, kind)):
            assert 1 <= len(demonstration.actions) <= MAX_ACTIONS
            assert "done" not in demonstration.actions or demonstration.actions == ("done",)
            last = env.record.steps
        solved.append(env.record.steps == last + 1 and env.referee.succeeded())
    assert sum(solved) >= 5


def test_searching_expert_knows_only_what_was_visible(env: Household) -> None:
    """Before the target has shown in a camera, nothing it says or does depends on where the target is."""
    blind_turns = 0
    for seed in range(8):
        env.reset(seed=200 + seed, options={"task": "Fetch"})
        teacher, seen = expert(env), False
        for demonstration in play(env, teacher):
            seen = seen or target_shows(env)
            assert bool(teacher.memory.seen_at) == seen
            if not seen:
                blind_turns += 1
                assert demonstration.reasoning.split()[0] in ("search", "go", "look")
                assert env.task.thing not in demonstration.reasoning
    assert blind_turns > 8


def target_shows(env: Household) -> bool:
    targets = list(env.task.targets)
    return any(is_seen(v) for c in CAMERAS for v in env.world.views(c, targets).values())


def test_what_it_observes_is_true(env: Household) -> None:
    for seed in range(5):
        env.reset(seed=300 + seed, options={"task": "Fetch"})
        for demonstration in play(env, expert(env)):
            said = demonstration.observation
            if said.startswith("holding"):
                assert env.referee.holds_target()
                continue
            assert said.startswith(env.task.thing)
            assert ("not seen" in said.split(";")[0]) != target_shows(env)
            if said.endswith("at gripper"):
                assert set(env.task.targets) & set(env.world.graspable())


def test_vocabulary_is_closed(env: Household) -> None:
    words = {w for p in PREDICTIONS for w in p.split()} | {"next", "room", "at"}
    for task in TASKS:
        env.reset(seed=1, options={"task": task})
        own = {*env.task.thing.split(), *env.task.receptacle.split(), *env.task.room.split()}
        for demonstration in play(env, expert(env)):
            assert set(demonstration.reasoning.split()) <= words | own
            assert demonstration.prediction


def test_asking_moves_nothing(env: Household) -> None:
    env.reset(seed=3, options={"task": "Fetch"})
    teacher = expert(env)
    before, steps = env.world.robot, env.record.steps
    first = teacher()
    assert teacher() == first
    assert (env.world.robot, env.record.steps) == (before, steps)


def test_labels_states_that_others_led_to(env: Household) -> None:
    """Random turns are mixed in; the expert mends what they did."""
    names = [n for n in env.actions.names if n not in ("done", "sub_done")]
    solved = 0
    for seed in range(8):
        env.reset(seed=400 + seed, options={"task": "Fetch"})
        teacher, rng, over = expert(env), np.random.default_rng(seed), False
        info: dict[str, Any] = {}
        for _ in range(100):
            demonstration = teacher()
            own = rng.random() >= 0.3
            actions = demonstration.actions if own else [str(a) for a in rng.choice(names, size=4)]
            _, _, terminated, over, info = env.turn(actions)
            if terminated or over:
                break
        solved += bool(info.get("success"))
    assert solved >= 7


def test_starts_afresh_with_a_new_episode(env: Household) -> None:
    env.reset(seed=5, options={"task": "Fetch"})
    teacher = expert(env)
    for _ in play(env, teacher):
        pass
    env.reset(seed=6, options={"task": "Fetch"})
    fresh = expert(env)
    assert teacher() == fresh()
    assert teacher.memory.entered == fresh.memory.entered


def test_one_action_a_turn(env: Household) -> None:
    env.reset(seed=8, options={"task": "PickUp"})
    teacher = env.expert(max_actions=1)
    for _ in range(60):
        actions = teacher().actions
        assert len(actions) == 1
        if env.turn(actions)[2]:
            break
    assert env.referee.holds_target()


def test_gives_up_on_what_lies_too_low(env: Household) -> None:
    env.reset(seed=8, options={"task": "PickUp"})
    teacher = expert(env, "planner")
    x, y, _ = env.world.position(env.task.targets[0])
    move = teacher.moves.take(env.task.targets[0], (x, y, 0.03))
    assert move is None


def test_unknown_kind(env: Household) -> None:
    env.reset(seed=0)
    with pytest.raises(UnknownNameError, match="planner"):
        env.expert(kind="planer")  # type: ignore[arg-type]
