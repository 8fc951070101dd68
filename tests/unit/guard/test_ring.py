"""States to go back to: proven by what follows them, and whole."""

import pytest

from rllib_vlm.guard.ring import Ring


def writer(text="state"):
    def write(folder):
        folder.mkdir()
        (folder / "weights").write_text(text)

    return write


def test_a_state_is_trusted_once_enough_healthy_updates_have_followed(tmp_path):
    ring = Ring(root=tmp_path / "states", proof=2)
    ring.save(5, writer())
    assert ring.best() is None
    ring.healthy()
    assert ring.best() is None
    ring.healthy()
    update, folder = ring.best()
    assert update == 5 and (folder / "weights").read_text() == "state"


def test_candidates_are_dropped_at_the_first_suspicion(tmp_path):
    ring = Ring(root=tmp_path, proof=1)
    ring.save(5, writer())
    ring.healthy()
    ring.save(6, writer())
    ring.suspect()
    ring.healthy()
    assert ring.best()[0] == 5
    assert [p.name for p in tmp_path.iterdir()] == ["update_000005"]


def test_only_the_last_few_are_kept(tmp_path):
    ring = Ring(root=tmp_path, keep=2, proof=1)
    for update in range(5):
        ring.save(update, writer(str(update)))
        ring.healthy()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["update_000003", "update_000004"]


def test_a_state_that_fails_again_gives_way_to_an_older_one_but_never_the_last(tmp_path):
    ring = Ring(root=tmp_path, proof=1)
    for update in (1, 2):
        ring.save(update, writer())
        ring.healthy()
    ring.give_up(2)
    assert ring.best()[0] == 1
    ring.give_up(1)
    assert ring.best()[0] == 1


def test_a_write_that_fails_leaves_nothing(tmp_path):
    ring = Ring(root=tmp_path, proof=1)

    def full(folder):
        folder.mkdir()
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        ring.save(1, full)
    ring.healthy()
    assert ring.best() is None and list(tmp_path.iterdir()) == []


def test_a_resumed_run_finds_its_states(tmp_path):
    ring = Ring(root=tmp_path, proof=2)
    ring.save(3, writer())
    ring.healthy()
    ring.healthy()
    ring.save(4, writer())
    again = Ring(root=tmp_path, proof=2)
    assert again.best()[0] == 3
    again.healthy()
    again.healthy()
    assert again.best()[0] == 4


def test_a_run_resumed_earlier_forgets_what_it_has_not_done(tmp_path):
    ring = Ring(root=tmp_path, proof=1)
    for update in (2, 4):
        ring.save(update, writer())
        ring.healthy()
    again = Ring(root=tmp_path, proof=1)
    again.forget_after(3)
    assert again.best()[0] == 2 and [p.name for p in tmp_path.iterdir()] == ["update_000002"]
