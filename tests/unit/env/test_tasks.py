from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_vlm.env.tasks import GroupQueue, OpenGroups, Task, TaskSampler, heldout_tasks


def test_runners_never_share_a_task_and_together_play_one_sequence():
    alone = TaskSampler(seed=7)
    together = [TaskSampler(seed=7, worker=w, workers=3) for w in range(3)]
    shared = [sampler.draw() for _ in range(20) for sampler in together]
    assert shared == [alone.draw() for _ in range(60)]
    assert len({task.seed for task in shared}) == 60


def test_the_sequence_follows_the_seed_and_the_cursor():
    first = TaskSampler(seed=1)
    drawn = [first.draw() for _ in range(5)]
    again = TaskSampler(seed=1)
    again.cursor = 3
    assert [again.draw(), again.draw()] == drawn[3:]
    assert TaskSampler(seed=2).draw() != drawn[0]
    assert [again.at(place) for place in range(5)] == drawn and again.cursor == 5


def test_num_task_seeds_repeats_the_sequence():
    sampler = TaskSampler(seed=0, num_task_seeds=4)
    drawn = [sampler.draw() for _ in range(12)]
    assert drawn[:4] == drawn[4:8] == drawn[8:]
    assert len(set(drawn)) == 4


@given(count=st.integers(0, 60), workers=st.integers(1, 7))
@settings(max_examples=30, deadline=None)
def test_heldout_tasks_are_divided_without_rest_or_overlap(count, workers):
    shares = [heldout_tasks(count, worker=w, workers=workers) for w in range(workers)]
    seeds = sorted(task.seed for share in shares for task in share)
    assert seeds == list(range(count))
    assert {task.split for share in shares for task in share} <= {"heldout"}


def tasks(n: int) -> list[Task]:
    return [Task("train", i) for i in range(n)]


class Replacements:
    def __init__(self) -> None:
        self.drawn = 0

    def __call__(self) -> Task:
        self.drawn += 1
        return Task("train", 1000 + self.drawn)


def test_groups_come_back_whole_and_in_order_whoever_finishes_first():
    queue = GroupQueue(tasks(2), 3, replacement=Replacements())
    members = [queue.take() for _ in range(6)]
    assert queue.take() is None
    for member in reversed(members):
        assert not queue.done
        queue.finish(member, (member.task.seed, member.index))
    assert queue.done
    assert queue.episodes() == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


def test_a_failed_member_is_played_again_with_the_same_task():
    queue = GroupQueue(tasks(1), 2, replacement=Replacements(), max_retries=2)
    first, second = queue.take(), queue.take()
    queue.finish(second, "second")
    queue.fail(first)
    retry = queue.take()
    assert (retry.task, retry.index, retry.attempt) == (first.task, first.index, 1)
    queue.finish(retry, "first")
    assert queue.done and queue.episodes() == ["first", "second"]
    assert queue.num_replaced == 0


def test_a_group_that_keeps_failing_gives_way_to_another_task():
    replacements = Replacements()
    queue = GroupQueue(tasks(1), 2, replacement=replacements, max_retries=1)
    member, sibling = queue.take(), queue.take()
    queue.fail(member)
    queue.fail(queue.take())
    assert queue.is_dropped(sibling)
    queue.finish(sibling, "late")  # of a group that was given up
    assert not queue.done and replacements.drawn == 1
    for _ in range(2):
        new = queue.take()
        assert new.task.seed == 1001
        queue.finish(new, new.index)
    assert queue.done and queue.episodes() == [0, 1] and queue.num_replaced == 1


@given(
    groups=st.integers(1, 5),
    size=st.integers(1, 4),
    retries=st.integers(0, 2),
    failures=st.lists(st.booleans(), max_size=60),
)
@settings(max_examples=60, deadline=None)
def test_whatever_fails_the_asked_number_of_whole_groups_comes_back(groups, size, retries, failures):
    queue = GroupQueue(tasks(groups), size, replacement=Replacements(), max_retries=retries)
    outcomes = iter(failures)
    while not queue.done:
        member = queue.take()
        assert member is not None
        if next(outcomes, False):
            queue.fail(member)
        else:
            queue.finish(member, member)
    episodes = queue.episodes()
    assert len(episodes) == groups * size
    for start in range(0, len(episodes), size):
        group = episodes[start : start + size]
        assert len({m.task for m in group}) == 1
        assert [m.index for m in group] == list(range(size))


def test_a_group_without_retries_is_replaced_at_once():
    queue = GroupQueue(tasks(1), 1, replacement=Replacements(), max_retries=0)
    queue.fail(queue.take())
    assert queue.take().task.seed == 1001


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_group_is_named_after_its_split_and_seed(split):
    assert Task(split, 5).group == f"{split}/5"


@given(
    size=st.integers(1, 3),
    wanted=st.integers(1, 3),
    ahead=st.integers(0, 3),
    order=st.lists(st.integers(0, 11), max_size=80),
    failures=st.lists(st.booleans(), max_size=80),
)
@settings(max_examples=60, deadline=None)
def test_open_groups_come_whole_each_once_whoever_is_quick(size, wanted, ahead, order, failures):
    queue, chance, fails = OpenGroups(size, replacement=Replacements()), iter(order), iter(failures)
    playing, given_, drawn = [], [], 0
    held: dict[int, Task] = {}
    for update in range(4):
        new = wanted + ahead - len(held)
        held |= {number: Task("train", number) for number in range(drawn, drawn + new)}
        drawn += new
        queue.hold(held, wanted, {"level": update})
        while not queue.done:
            while (member := queue.take()) is not None:
                playing.append(member)
            member = playing.pop(next(chance, 0) % len(playing))
            if next(fails, False):
                queue.fail(member)
            else:
                queue.finish(member, member)
        members = queue.episodes()
        assert len(queue.taken) == wanted and len(members) == wanted * size
        for k, number in enumerate(queue.taken):
            siblings = members[k * size : (k + 1) * size]
            assert [m.index for m in siblings] == list(range(size))
            assert len({m.task for m in siblings}) == len({m.options["level"] for m in siblings}) == 1
            assert siblings[0].task in (held.pop(number), *(Task("train", 1000 + i) for i in range(1, 99)))
        given_ += queue.taken
    assert sorted([*given_, *held]) == list(range(drawn)), "nothing is lost, and nothing comes twice"


def test_of_open_groups_that_are_whole_the_oldest_goes_first_and_what_is_not_held_is_given_up():
    queue = OpenGroups(1, replacement=Replacements())
    queue.hold({n: Task("train", n) for n in range(3)}, 1, {})
    members = [queue.take() for _ in range(3)]
    for member in (members[2], members[1]):
        queue.finish(member, member.task.seed)
    assert queue.episodes() == [1] and queue.taken == (1,)
    queue.hold({2: Task("train", 2), 3: Task("train", 3)}, 2, {})
    assert queue.is_dropped(members[0]) and not queue.done
    new = queue.take()
    assert new.task.seed == 3 and queue.take() is None
    queue.finish(members[0], "late")
    queue.finish(new, 3)
    assert queue.done and queue.episodes() == [2, 3]
    with pytest.raises(ValueError, match="2 groups are wanted, of 1"):
        queue.hold({4: Task("train", 4)}, 2, {})
