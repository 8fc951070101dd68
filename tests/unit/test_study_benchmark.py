"""The study's sums, from runs that stand in a file: nothing is run, Ray is not started."""

from __future__ import annotations

import json
from typing import Any

import PIL.Image
import pytest

from benchmarks._study_runs import COMPARISONS, settings
from benchmarks.study import run
from rllib_vlm.config.resources import examples
from rllib_vlm.errors import RLlibVLMError

VIRL = ("in_distribution", "rule_ood", "visual_ood")
EPISODES = COMPARISONS["virl"].episodes


def rate(count: int, of: int = EPISODES) -> dict[str, Any]:
    return {"count": count, "of": of, "rate": count / of}


def point(cpu_s: float, *successes: int) -> dict[str, Any]:
    tests = {
        part: {"success": rate(count), "step_accuracy": rate(5 * count, 400)}
        for part, count in zip(VIRL, successes, strict=True)
    }
    return {"updates": 1, "cpu_s": cpu_s, "tokens": int(1000 * cpu_s), "tests": tests}


def row(arm: str, seed: int, *points: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "task": "virl", "start": "broad", "arm": arm, "seed": seed, "points": points,
        "settings": settings("virl"), **more,
    }  # fmt: skip


def rows() -> list[dict[str, Any]]:
    begin = point(0.0, 24, 12, 12)
    return [
        row("rl", 0, begin, point(50.0, 40, 24, 20)),
        row("sft", 0, begin, point(51.0, 47, 0, 30)),
        row("rl", 1, begin, point(60.0, 44, 0, 20)),
        row("sft", 1, begin, point(61.0, 47, 12, 30)),
    ]


def test_runs_that_stand_in_the_file_are_summed_up_drawn_and_not_run_again(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows()) + '{"task": "vi')
    found = run("virl", "seeds=2", f"out={file}")
    assert (found["value"], found["unit"]) == (
        pytest.approx(12.5),
        "points of success, other rule, RL minus SFT",
    )
    details = found["details"]
    assert details["virl from broad, rule_ood: start"].startswith("25.0% (")
    assert details["virl from broad, rule_ood: RL"].startswith("25.0% (")
    assert details["virl from broad, rule_ood: SFT"].startswith("12.5% (")
    assert details["virl from broad, visual_ood: RL minus SFT"].startswith("-20.8 (")
    table = (tmp_path / "rows.md").read_text()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    cells = {line[0]: line[1:] for line in lines if line}
    assert [cell.split("%")[0] for cell in cells["in distribution: success"][:3]] == ["50.0", "87.5", "97.9"]
    assert cells["CPU-seconds a run"][1:3] == ["55", "56"]
    assert cells["tokens learnt from a run"][1:3] == ["55,000", "56,000"]
    with PIL.Image.open(tmp_path / "rows.virl.broad.png") as picture:
        assert picture.width > 600


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["vril"], "Did you mean 'virl'"),
        (["seds=3"], "Did you mean 'seeds'"),
        (["seeds=none"], "seeds=none: not a whole number"),
        (["start=brod"], "Did you mean 'broad'"),
    ],
)
def test_wrong_arguments_are_told_before_anything_starts(arguments, said):
    with pytest.raises(RLlibVLMError, match=said):
        run(*arguments)


def test_a_place_that_cannot_be_written_is_told_before_anything_runs(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RLlibVLMError, match=r"rows\.jsonl cannot be written"):
        run("virl", f"out={tmp_path / 'file' / 'rows.jsonl'}")


def test_rows_of_other_settings_are_refused(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({**rows()[0], "settings": {**settings("virl"), "every": 99}}) + "\n")
    with pytest.raises(RLlibVLMError, match="virl from broad, rl, seed 0 was run with other settings"):
        run("virl", f"out={file}")


def test_of_an_example_only_what_it_asks_for_makes_other_settings(tmp_path, monkeypatch):
    files = {name: tmp_path / f"{name}.yaml" for name in ("cards_ppo", "cards_sft")}
    for name, file in files.items():
        file.write_text(examples()[name].read_text())
    monkeypatch.setattr("benchmarks._study_runs.examples", lambda: files)
    before = settings("cards")
    files["cards_ppo"].write_text("# measured since\n" + files["cards_ppo"].read_text())
    assert settings("cards") == before
    files["cards_ppo"].write_text(files["cards_ppo"].read_text().replace("cards: 3", "cards: 4"))
    assert settings("cards") != before
