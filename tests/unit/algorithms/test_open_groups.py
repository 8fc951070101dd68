"""Which runner plays which groups, and what becomes of those of a runner that dies."""

from __future__ import annotations

import pytest

from rllib_vlm.algorithms.open_groups import Holders
from rllib_vlm.env.played import Played
from rllib_vlm.env.tasks import Task
from rllib_vlm.errors import SimulatorError


class Group:
    """Runners as RLlib's group presents them, whose oldest groups are whole first.

    Those in `dying` die in their next call.
    """

    def __init__(self, workers: int, dying: tuple[int, ...] = ()) -> None:
        self.alive = list(range(1, workers + 1))
        self.dying = set(dying)
        self.calls: list[dict[int, tuple[list[int], int]]] = []

    def num_remote_env_runners(self) -> int:
        return 1

    def healthy_env_runner_ids(self) -> list[int]:
        return list(self.alive)

    def foreach_env_runner(self, method, *, kwargs, local_env_runner, remote_worker_ids):
        assert method == "play_open_groups" and not local_env_runner
        self.calls.append(
            {w: (list(k["tasks"]), k["wanted"]) for w, k in zip(remote_worker_ids, kwargs, strict=True)}
        )
        played = []
        for worker, own in zip(remote_worker_ids, kwargs, strict=True):
            if worker in self.dying:
                self.alive.remove(worker)
                self.dying.remove(worker)
                continue
            numbers = tuple(own["tasks"])[: own["wanted"]]
            items = [f"{n}{member}" for n in numbers for member in "ab"]
            played.append(Played(worker=worker, items=items, numbers=numbers, metrics=len(items)))
        return played


def tasks(*numbers: int) -> dict[int, Task]:
    return {number: Task("train", number) for number in numbers}


def play(holders, group, numbers, wanted, restore=lambda group: None):
    return holders.play(
        group, tasks(*numbers), wanted, {"seed": 1}, on_metrics=lambda m: None, on_loss=restore
    )


def test_a_group_stays_with_its_runner_and_new_ones_go_where_there_are_fewest():
    group, holders = Group(2), Holders()
    assert play(holders, group, range(6), 3) == {0: ["0a", "0b"], 1: ["1a", "1b"], 2: ["2a", "2b"]}
    assert group.calls[0] == {1: ([0, 2, 4], 2), 2: ([1, 3, 5], 1)}
    # Runner 1 has kept 4, runner 2 has kept 3 and 5.
    assert sorted(play(holders, group, (3, 4, 5, 6, 7, 8), 3)) == [3, 4, 5]
    assert group.calls[1] == {1: ([4, 6, 7], 1), 2: ([3, 5, 8], 2)}


def test_no_runner_is_passed_over_for_ever():
    group, holders = Group(2), Holders()
    open_ = list(range(4))
    seen: list[int] = []
    for update in range(6):
        (found,) = play(holders, group, open_, 1)
        seen.append(found)
        open_ = [n for n in open_ if n != found] + [4 + update]
    assert seen == [0, 1, 2, 3, 4, 5]


def test_what_a_dead_runner_held_is_begun_again_and_the_update_gets_what_it_wants():
    group, holders = Group(2, dying=(2,)), Holders()

    def restore(group):
        group.alive = [1, 2]

    assert sorted(play(holders, group, range(6), 4, restore)) == [0, 1, 2, 3]
    assert group.calls[0] == {1: ([0, 2, 4], 2), 2: ([1, 3, 5], 2)}
    assert group.calls[1] == {2: ([1, 3, 5], 2)}, "who has given what was wanted of it keeps the rest"


def test_what_a_runner_held_that_stays_dead_goes_to_others():
    group, holders = Group(2, dying=(2,)), Holders()
    assert sorted(play(holders, group, range(6), 4)) == [0, 1, 2, 3]
    assert group.calls[1] == {1: ([1, 3, 4, 5], 2)}


def test_runners_that_stay_dead_end_the_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rllib_vlm.algorithms.dispatch.RESTART_S", 0.0)
    with pytest.raises(SimulatorError, match="play_open_groups"):
        play(Holders(), Group(1, dying=(1,)), range(2), 1)
