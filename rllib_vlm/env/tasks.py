"""Which tasks a runner plays, in whole groups: seeds, siblings, retries and replacements."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

import numpy as np

Split = Literal["train", "heldout"]
EpisodeT = TypeVar("EpisodeT")


@dataclass(frozen=True, slots=True)
class Task:
    """One task: siblings of a group play the same one."""

    split: Split
    seed: int

    @property
    def group(self) -> str:
        return f"{self.split}/{self.seed}"


class TaskSampler:
    """An endless, reproducible sequence of tasks, disjoint from every other runner's.

    Runner w of W plays the tasks w, w + W, w + 2 W, ... of one sequence that follows from `seed`, so
    all runners together play the same tasks however many they are.

    Args:
        seed: of the run.
        worker: this runner, 0 to `workers` - 1.
        workers: runners that share the sequence.
        num_task_seeds: length after which the sequence repeats; None never repeats it.
        first: position in the sequence to begin at.
        split: of the tasks.
    """

    def __init__(
        self,
        *,
        seed: int,
        worker: int = 0,
        workers: int = 1,
        num_task_seeds: int | None = None,
        first: int = 0,
        split: Split = "train",
    ) -> None:
        self._seed = seed
        self._first = first
        self._split: Split = split
        self._worker = worker
        self._workers = workers
        self._num_task_seeds = num_task_seeds
        self.cursor = 0  # tasks drawn so far; all the state there is

    def draw(self) -> Task:
        position = self._first + self.cursor * self._workers + self._worker
        self.cursor += 1
        if self._num_task_seeds is not None:
            position %= self._num_task_seeds
        # 31 bits: every simulator takes such a seed.
        mixed = np.random.SeedSequence([self._seed, position]).generate_state(1)[0]
        return Task(self._split, int(mixed) & 0x7FFFFFFF)


def heldout_tasks(count: int, *, worker: int = 0, workers: int = 1) -> list[Task]:
    """This runner's share of the held-out tasks 0 to `count` - 1, the same in every run."""
    return [Task("heldout", seed) for seed in range(worker, count, workers)]


@dataclass(frozen=True, slots=True)
class Member:
    """One episode to be played: a place in a group."""

    task: Task
    key: int  # number of the group in the queue
    index: int  # 0 to group_size - 1
    attempt: int = 0


@dataclass(slots=True)
class _Group(Generic[EpisodeT]):
    task: Task
    finished: dict[int, EpisodeT] = field(default_factory=dict)
    dropped: bool = False


class GroupQueue(Generic[EpisodeT]):
    """The episodes one call of `sample` has to finish, and what to do when a simulator fails one.

    Exactly `len(tasks)` whole groups come out, whatever fails: a member whose simulator failed is
    played again with the same seed; after `max_retries` failures in a group the group gives way to
    another task. Which episodes are returned never depends on which ones finish first.

    Args:
        tasks: one group each.
        group_size: members of a group.
        replacement: another task, for a group that cannot be finished.
        max_retries: failures a group may have before it is replaced.
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        group_size: int,
        *,
        replacement: Callable[[], Task],
        max_retries: int = 2,
    ) -> None:
        self._group_size = group_size
        self._replacement = replacement
        self._max_retries = max_retries
        self._groups: dict[int, _Group[EpisodeT]] = {}
        self._failures: dict[Hashable, int] = {}
        self._waiting: deque[Member] = deque()
        self.num_replaced = 0
        for task in tasks:
            self._open(task)
        self._wanted = len(self._groups)

    @property
    def done(self) -> bool:
        return sum(len(g.finished) == self._group_size for g in self._groups.values()) == self._wanted

    def take(self) -> Member | None:
        """The next episode to play, or None while only running ones are left."""
        return self._waiting.popleft() if self._waiting else None

    def is_dropped(self, member: Member) -> bool:
        """Whether the member's group was given up while it played."""
        return self._groups[member.key].dropped

    def finish(self, member: Member, episode: EpisodeT) -> None:
        group = self._groups[member.key]
        if not group.dropped:
            group.finished[member.index] = episode

    def fail(self, member: Member) -> None:
        """A simulator failed: play the member again, or give its group up for another task."""
        group = self._groups[member.key]
        if group.dropped:
            return
        failures = self._failures[member.key] = self._failures.get(member.key, 0) + 1
        if failures <= self._max_retries:
            retry = Member(member.task, member.key, member.index, member.attempt + 1)
            self._waiting.appendleft(retry)
            return
        group.dropped = True
        group.finished.clear()
        self._waiting = deque(m for m in self._waiting if m.key != member.key)
        self.num_replaced += 1
        self._open(self._replacement())

    def episodes(self) -> list[EpisodeT]:
        """All episodes, group by group, members in order."""
        return [
            group.finished[i]
            for group in self._groups.values()
            if not group.dropped
            for i in range(self._group_size)
        ]

    def _open(self, task: Task) -> None:
        key = len(self._groups)
        self._groups[key] = _Group(task)
        self._waiting.extend(Member(task, key, i) for i in range(self._group_size))
