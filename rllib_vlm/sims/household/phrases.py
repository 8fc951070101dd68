"""What experts say about a turn: short texts from a small closed vocabulary, true of what is visible."""

from __future__ import annotations

from collections.abc import Callable

from rllib_vlm.sims.household.scene import Sighting
from rllib_vlm.sims.household.tasks import Task

PREDICTIONS = {
    "search": "new view",
    "go to target": "{thing} nearer",
    "approach": "{thing} nearer",
    "align": "{thing} on the right",
    "raise": "gripper level with {thing}",
    "lower": "gripper level with {thing}",
    "reach": "gripper at {thing}",
    "grasp": "holding {thing}",
    "stow": "arm in",
    "drop": "holding nothing",
    "go to place": "{place} nearer",
    "look at place": "{place} ahead",
    "look": "{thing} ahead",
    "go to door": "door nearer",
    "go on": "new view",
    "go to room": "{room} nearer",
    "mark": "room marked",
    "stop": "task over",
    "give up": "task over",
}


def observed(
    task: Task, where: Callable[[Sighting], str], *, holding: bool, at_gripper: bool, target: Sighting | None,
    place: Sighting | None, door: Sighting | None, room: str | None,
) -> str:  # fmt: skip
    """What is visible of what matters to the task: target, then its receptacle, then a door.

    `where` says in words where a visible thing is.
    """
    if holding:
        return f"holding {task.thing}"
    if not task.thing:
        parts = [f"in {room}" if room else "in doorway"]
        parts.append(f"{door.words} {where(door)}" if door is not None else "no door seen")
        return "; ".join(parts)
    if target is not None and at_gripper:
        return f"{task.thing} at gripper"
    if target is not None:
        return f"{task.thing} {where(target)}"
    parts = [f"{task.thing} not seen"]
    if task.receptacle:
        parts.append(
            f"{task.receptacle} {where(place)}" if place is not None else f"{task.receptacle} not seen"
        )
    if place is None and door is not None:
        parts.append(f"{door.words} {where(door)}")
    return "; ".join(parts)


def reasoned(subgoal: str, task: Task) -> str:
    """The sub-goal in words: `go to table`, `search`, `align`."""
    words = {
        "go to place": f"go to {task.receptacle}",
        "look at place": f"look at {task.receptacle}",
        "go to target": f"go to {task.thing}",
        "look": f"look at {task.thing}",
        "go on": "new view",
        "go to room": f"go to {task.room}" if task.room else "go to next room",
    }
    return words.get(subgoal, subgoal)


def predicted(subgoal: str, task: Task) -> str:
    """What the next observation should show."""
    return PREDICTIONS[subgoal].format(thing=task.thing, place=task.receptacle, room=task.room or "next room")
