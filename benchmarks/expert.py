"""How many household episodes the experts solve, and how long they take."""

from __future__ import annotations

import statistics
import time
from typing import Any, get_args

from rllib_vlm.sims.household.env import Household
from rllib_vlm.sims.household.expert import ExpertKind
from rllib_vlm.sims.household.tasks import TASKS, TaskName
from rllib_vlm.sims.household.world import Split

EPISODES = 50  # per task, split and expert
MAX_ACTIONS = 5
_MOST_TURNS = 120


def run() -> dict[str, Any]:
    """The planner's solved share over all tasks and both splits is the headline."""
    details: dict[str, Any] = {"episodes_per_task": 2 * EPISODES, "max_actions": MAX_ACTIONS}
    solved: dict[str, list[bool]] = {kind: [] for kind in get_args(ExpertKind)}
    begin = time.process_time()
    for kind in get_args(ExpertKind):
        for task in TASKS:
            figures = measure(kind, task, EPISODES)
            solved[kind] += figures.pop("solved")
            details |= {f"{kind}.{task}.{name}": value for name, value in figures.items()}
        details[f"{kind}.solved"] = statistics.fmean(solved[kind])
    details["cpu_s"] = time.process_time() - begin
    return {
        "name": "expert", "value": details["planner.solved"], "unit": "share of episodes solved",
        "details": details,
    }  # fmt: skip


def measure(kind: ExpertKind, task: TaskName, episodes: int) -> dict[str, Any]:
    """Plays episodes of one task with one expert, half of them in held-out houses."""
    env = Household(tasks=(task,), observation="text")
    splits: tuple[Split, ...] = get_args(Split)
    solved, turns, actions, sel = [], [], [], []
    for split in splits:
        for seed in range(episodes):
            env.reset(seed=seed, options={"split": split})
            metrics, taken = play(env, kind)
            solved.append(bool(metrics.get("success")))
            sel.append(metrics.get("sel", 0.0))
            turns.append(taken)
            actions.append(env.record.steps)
    env.close()
    return {
        "solved": solved, "share": statistics.fmean(solved), "sel": statistics.fmean(sel),
        "turns": statistics.fmean(turns), "actions": statistics.fmean(actions),
    }  # fmt: skip


def play(env: Household, kind: ExpertKind) -> tuple[dict[str, float], int]:
    """The expert plays the present episode; its metrics (none where it gave up), and its number of turns."""
    expert = env.expert(max_actions=MAX_ACTIONS, kind=kind)
    for turn in range(1, _MOST_TURNS + 1):
        actions = expert().actions
        if not actions:
            return {}, turn
        _, _, terminated, truncated, info = env.turn(actions)
        if terminated or truncated:
            return info["metrics"], turn
    return {}, _MOST_TURNS
