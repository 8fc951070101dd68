"""Which tasks a runner plays, in whole groups: seeds, siblings, retries and replacements."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar

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
        self.cursor += 1
        return self.at(self.cursor - 1)

    def at(self, place: int) -> Task:
        """The task that is drawn where the cursor stands at `place`; the cursor stays where it is."""
        position = self._first + place * self._workers + self._worker
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
    options: Mapping[str, Any] = field(default_factory=dict)  # of the reset, the same for all siblings


@dataclass(slots=True)
class _Group(Generic[EpisodeT]):
    task: Task
    number: int  # of who asked for it; a replacement has that of the group it stands for
    options: Mapping[str, Any]
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
        self._opened = 0
        self.num_replaced = 0
        for number, task in enumerate(tasks):
            self._open(task, number, {})
        self._wanted = len(self._groups)

    @property
    def done(self) -> bool:
        return sum(len(g.finished) == self._group_size for g in self._groups.values()) >= self._wanted

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
            self._waiting.appendleft(replace(member, attempt=member.attempt + 1))
            return
        self._drop(member.key)
        self.num_replaced += 1
        self._open(self._replacement(), group.number, group.options)

    def episodes(self) -> list[EpisodeT]:
        """All episodes, group by group, members in order."""
        return [
            group.finished[i]
            for group in self._groups.values()
            if not group.dropped
            for i in range(self._group_size)
        ]

    def _open(self, task: Task, number: int, options: Mapping[str, Any]) -> None:
        key, self._opened = self._opened, self._opened + 1
        self._groups[key] = _Group(task, number, options)
        self._waiting.extend(Member(task, key, i, options=options) for i in range(self._group_size))

    def _drop(self, key: int) -> None:
        self._groups[key].dropped = True
        self._groups[key].finished.clear()
        self._waiting = deque(m for m in self._waiting if m.key != key)


class OpenGroups(GroupQueue[EpisodeT]):
    """A queue that outlives an update: groups come and, once they are whole, go, while others are played on.

    Args:
        group_size: members of a group.
        replacement: another task, for a group that cannot be finished.
        max_retries: failures a group may have before it is replaced.
    """

    def __init__(self, group_size: int, *, replacement: Callable[[], Task], max_retries: int = 2) -> None:
        super().__init__((), group_size, replacement=replacement, max_retries=max_retries)
        self.taken: tuple[int, ...] = ()  # numbers of the groups whose episodes were given last

    def hold(self, tasks: Mapping[int, Task], wanted: int, options: Mapping[str, Any]) -> None:
        """Plays these groups, by their numbers, from now on, until `wanted` of them are whole.

        Those that are under way go on; others that were are given up.

        Args:
            tasks: by number; siblings play one.
            wanted: how many of them are to be whole.
            options: of the resets of groups that begin now.

        Raises:
            ValueError: more are wanted than there are.
        """
        if wanted > len(tasks):
            raise ValueError(f"{wanted} groups are wanted, of {len(tasks)}")
        for key, group in self._groups.items():
            if group.number not in tasks:
                self._drop(key)
        under_way = {group.number for group in self._groups.values() if not group.dropped}
        for number, task in tasks.items():
            if number not in under_way:
                self._open(task, number, options)
        self._wanted = wanted
        self.num_replaced = 0

    def episodes(self) -> list[EpisodeT]:
        """Those of the wanted groups, which leave the queue; of more that are whole, the ones begun first."""
        whole = [key for key, group in self._groups.items() if len(group.finished) == self._group_size]
        taken = [self._groups.pop(key) for key in whole[: self._wanted]]
        self.taken = tuple(group.number for group in taken)
        self._wanted = 0
        return [group.finished[i] for group in taken for i in range(self._group_size)]
