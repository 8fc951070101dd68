from __future__ import annotations

import pytest

from rllib_vlm.algorithms.dispatch import ATTEMPTS, play
from rllib_vlm.env.played import Played
from rllib_vlm.errors import ModelError, SimulatorError


class Group:
    """Runners as RLlib's group presents them: those in `dying` die in their next call."""

    def __init__(self, workers: int, dying: tuple[int, ...] = (), per_task: int = 1) -> None:
        self.alive = list(range(1, workers + 1))
        self.dying = set(dying)
        self.per_task = per_task
        self.calls: list[dict[int, list[int]]] = []

    def num_remote_env_runners(self) -> int:
        return 1

    def healthy_env_runner_ids(self) -> list[int]:
        return list(self.alive)

    def foreach_env_runner(self, method, *, kwargs, local_env_runner, remote_worker_ids):
        assert method == "double" and not local_env_runner
        self.calls.append({w: own["tasks"] for w, own in zip(remote_worker_ids, kwargs, strict=True)})
        played = []
        for worker, own in zip(remote_worker_ids, kwargs, strict=True):
            if worker in self.dying:
                self.alive.remove(worker)
                self.dying.remove(worker)
                continue
            items = [own["factor"] * t for t in own["tasks"] for _ in range(self.per_task)]
            played.append(Played(worker=worker, items=items, metrics=len(items)))
        return played


def run(group, tasks=range(7), restore=lambda group: None):
    seen: list[int] = []
    items = play(group, "double", tasks, {"factor": 2}, on_metrics=seen.append, on_loss=restore)
    return items, seen


def test_tasks_are_shared_and_come_back_in_order():
    group = Group(3)
    items, seen = run(group)
    assert items == [0, 2, 4, 6, 8, 10, 12]
    assert sorted(len(t) for t in group.calls[0].values()) == [2, 2, 3]
    assert sum(seen) == 7


def test_groups_stay_together():
    assert run(Group(2, per_task=2), range(3))[0] == [0, 0, 2, 2, 4, 4]


def test_only_the_work_of_the_dead_is_given_out_again():
    group = Group(3, dying=(2,))
    items, _ = run(group)
    assert items == [0, 2, 4, 6, 8, 10, 12]
    assert set(group.calls[1]) <= {1, 3}
    assert sorted(t for tasks in group.calls[1].values() for t in tasks) == [1, 4]


def test_all_dead_at_once_and_brought_back():
    group = Group(2, dying=(1, 2))

    def restore(group):
        group.alive = [1, 2]

    assert run(group, restore=restore)[0] == [0, 2, 4, 6, 8, 10, 12]


def test_the_last_of_all_runners_is_waited_for():
    group = Group(1, dying=(1,))
    asked = []

    def restore(group):
        asked.append(1)
        group.alive = [1] if len(asked) > ATTEMPTS + 1 else []

    assert run(group, restore=restore)[0] == [0, 2, 4, 6, 8, 10, 12]


def test_runners_that_stay_dead_end_the_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rllib_vlm.algorithms.dispatch.RESTART_S", 0.0)
    with pytest.raises(SimulatorError, match="double"):
        run(Group(1, dying=(1,)))


def test_a_mistake_of_the_users_is_said_at_once():
    group = Group(1)
    group.foreach_env_runner = lambda *a, **k: [
        Played(worker=1, items=[], metrics=0, error=ModelError("no such model"))
    ]
    with pytest.raises(ModelError, match="no such model"):
        run(group)


def test_fewer_tasks_than_runners():
    assert run(Group(5), range(2))[0] == [0, 2]
