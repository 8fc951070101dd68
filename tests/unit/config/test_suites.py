"""Which suites fit a checkpoint, and what is refused before anything is loaded."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from tiny import tiny_config

from rllib_vlm import cli
from rllib_vlm.algorithms.ppo import VLMPPO
from rllib_vlm.config.checkpoints import MARK
from rllib_vlm.config.suites import prepare
from rllib_vlm.errors import ConfigErrors, RLlibVLMError, UnknownNameError
from rllib_vlm.sims.suite import Part, Suite

CITY = {"style": "nyc", "routes": 10, "seed": 0, "width": 128}
TEXT = "environment.env_config.observation=text"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """As much of a walker's checkpoint as is read before it is restored."""
    config = tiny_config("ppo", observation="vision").environment("streetview")
    config.env_config = {"city": CITY, "resolution": 16}
    config.evaluation(evaluation_config={"temperature": 0.5, "env_config": {"verify_iter": 3}})
    folder = tmp_path / "trial" / "checkpoint_000003"
    folder.mkdir(parents=True)
    (folder / MARK).write_text("{}")
    stored = {"class": VLMPPO, "ctor_args_and_kwargs": ((config,), {})}
    (folder / VLMPPO.CLASS_AND_CTOR_ARGS_FILE_NAME).write_bytes(pickle.dumps(stored))
    return folder


def run(*argv: object) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(a) for a in argv])
    return caught.value.code


def test_what_a_part_is_played_by(checkpoint: Path):
    changes = ["generation.max_new_tokens=6", "environment.env_config.drop_rate=0.0"]
    plan = prepare(checkpoint, "virl", overrides=changes)
    assert [(p.part.name, p.episodes) for p in plan.parts] == [
        ("in_distribution", 48), ("rule_ood", 48), ("visual_ood", 18),
    ]  # fmt: skip
    own = {"city": CITY, "resolution": 16, "verify_iter": 3, "drop_rate": 0.0}
    told = [plan.conditions(part) for part in plan.parts]
    assert [t["env_config"] for t in told] == [own, {**own, "action_set": "relative"}, own]
    assert [t["seeds"] for t in told] == [[0, 47], [0, 47], [0, 17]]
    for each in told:
        assert each["decoding"]["temperature"] == 0.5 and each["decoding"]["max_new_tokens"] == 6
        assert each["prompting"]["template"] == "bare" and each["max_turns"] == 4
    few = prepare(checkpoint, "virl", parts=["rule_ood"], episodes=5)
    assert [(p.part.name, len(p.tasks)) for p in few.parts] == [("rule_ood", 5)]


PICTURES = Suite(
    simulator="streetview",
    parts=(
        Part(name="words", split="heldout", episodes=2),
        Part(name="looks", split="visual_ood", episodes=2, only_with={"observation": ("vision", "both")}),
    ),
)


def test_a_part_for_pictures_is_left_out_where_there_are_none(checkpoint: Path):
    name = f"{__name__}:PICTURES"
    assert [p.part.name for p in prepare(checkpoint, name).parts] == ["words", "looks"]
    plan = prepare(checkpoint, name, overrides=[TEXT])
    assert [p.part.name for p in plan.parts] == ["words"]
    assert "looks is for observation vision or both, and this is text" in plan.left_out["looks"]
    with pytest.raises(RLlibVLMError, match="nothing is left to play"):
        prepare(checkpoint, name, parts=["looks"], overrides=[TEXT])
    streets = prepare(checkpoint, "virl", overrides=[TEXT])  # where the other city is other words
    assert [p.part.name for p in streets.parts] == ["in_distribution", "rule_ood", "visual_ood"]


def test_what_does_not_fit_is_refused(checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    assert run("evaluate", checkpoint, "--suite", "vril") == 2
    assert "suites has no 'vril'. Did you mean 'virl'?" in capsys.readouterr().err
    with pytest.raises(UnknownNameError, match="Did you mean 'rule_ood'"):
        prepare(checkpoint, "virl", parts=["rule_odd"])
    with pytest.raises(
        RLlibVLMError, match=r"simulator 'cards'.* one of 'streetview'\. Suites for that: virl"
    ):
        prepare(checkpoint, "cards")
    for argv in (("--split", "train", "--suite", "virl"), ("--out", "x"), ("--part", "rule_ood")):
        assert run("evaluate", checkpoint, *argv) == 2


def test_results_are_not_written_over(checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    folder = checkpoint.parent / "virl_checkpoint_000003"
    folder.mkdir()
    (folder / "table.md").write_text("kept")
    assert run("evaluate", checkpoint, "--suite", "virl") == 2
    assert "--out" in capsys.readouterr().err and (folder / "table.md").read_text() == "kept"


def test_every_part_that_cannot_be_played_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    parts = (
        Part(name="a", split="heldout", episodes=1),
        Part(name="b", split="test", episodes=1),
        Part(name="c", split="heldout", episodes=1, env_config={"action_sets": "relative"}),
    )
    broken = Suite(simulator="rllib_vlm.sims.streetview.env:StreetView", parts=parts)
    monkeypatch.setattr("rllib_vlm.sims.streetview.suite.VIRL", broken)
    with pytest.raises(ConfigErrors) as error:
        prepare(checkpoint, "virl")
    assert len(error.value.errors) == 2
    assert error.value.errors[0].startswith("b: split='test'")
    assert "Did you mean 'action_set'" in error.value.errors[1]
