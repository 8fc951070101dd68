"""Totals, lines and tables from transcripts of known outcome."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from rllib_vlm.config.suite_records import totals, write_records
from rllib_vlm.config.suite_report import draw, write_table
from rllib_vlm.env.summary import EpisodeSummary
from rllib_vlm.env.transcript import ToldTurn, Transcript

CONDITIONS = {
    "checkpoint": "/runs/trial/checkpoint_000003",
    "suite": "virl",
    "part": "rule_ood",
    "num_updates": 12,
    "decoding": {"temperature": 0.2, "stop": []},
}


def transcript(
    seed: int, *answers: tuple[int, bool, float], success: bool, graded: bool = True
) -> Transcript:
    """An episode of answers (attempt, whether right, reward)."""
    turns = []
    for attempt, correct, reward in answers:
        verdict = "right" if correct else "wrong"
        info: dict[str, Any] = {"metrics": {"steps": 1.0}}
        if graded:
            info["grades"] = [{"attempt": attempt, "correct": correct, "verdict": verdict}]
        turns.append(ToldTurn(output=f"answer {attempt}", reward=reward, info=info))
    summary = EpisodeSummary(
        task_seed=seed,
        success=success,
        total_reward=sum(a[2] for a in answers),
        turns=len(answers),
        actions=len(answers),
        metrics={"steps": float(len(answers))},
    )
    return Transcript(summary=summary, task={"instruction": "walk"}, turns=tuple(turns))


WALKED = transcript(7, (1, True, 1.0), (1, False, -1.0), (2, True, 1.0), success=True)
LOST = transcript(8, (1, False, -1.0), (2, False, -1.5), success=False)


def test_totals_by_hand():
    total = totals([WALKED, LOST])
    assert total["episodes"] == 2
    assert total["success"]["rate"] == 0.5 and total["success"]["count"] == 1
    assert total["success"]["interval"] == pytest.approx([0.0945, 0.9055], abs=1e-4)  # Wilson, 1 of 2
    accuracy = total["step_accuracy"]
    assert (accuracy["count"], accuracy["of"]) == (2, 5)
    assert accuracy["interval"] == pytest.approx([0.1176, 0.7693], abs=1e-4)  # Wilson, 2 of 5
    assert total["reward"]["mean"] == -0.75
    assert total["reward"]["deviation"] == pytest.approx(3.5 / 2**0.5)
    assert (total["steps"], total["verification_steps"], total["turns"]) == (3, 5, 5)
    assert total["rates"] == {"right": 0.4, "wrong": 0.6}


def test_a_simulator_that_grades_nothing_has_turns_alone():
    total = totals([transcript(0, (1, True, 1.0), (1, True, 0.0), success=True, graded=False)])
    assert total["step_accuracy"] is None and total["verification_steps"] is None
    assert total["steps"] == 2 and total["reward"]["deviation"] == 0.0


def test_lines_of_steps_routes_and_the_total(tmp_path: Path):
    total = write_records(tmp_path / "x.jsonl", [WALKED, LOST], CONDITIONS)
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [line["record"] for line in lines] == [*["step"] * 3, "route", *["step"] * 2, "route", "total"]
    assert [line["veri_step"] for line in lines[:3]] == [1, 1, 2]
    assert [line["sample_id"] for line in lines[:-1]] == [7] * 4 + [8] * 3
    assert lines[2]["output"] == "answer 2" and lines[2]["reward"] == 1.0
    assert lines[3]["Success"] is True and lines[6]["Success"] is False
    assert lines[6]["reward"] == -2.5 and lines[6]["steps"] == 1 and lines[6]["verification_steps"] == 2
    assert lines[3]["step_accuracy"] == pytest.approx(2 / 3)
    assert lines[-1] == {"record": "total", **total} and total["decoding"]["temperature"] == 0.2


def test_table_and_picture(tmp_path: Path):
    graded = write_records(tmp_path / "x.jsonl", [WALKED, LOST], CONDITIONS)
    bare = {**graded, "part": "other", "step_accuracy": None, "verification_steps": None}
    write_table(tmp_path / "t.md", [graded, bare], {"visual_ood": "visual_ood is for pictures"})
    text = (tmp_path / "t.md").read_text()
    assert "12 updates" in text and "temperature 0.2" in text and "stop" not in text
    assert "| rule_ood | 2 | 50.0% [9.5, 90.5] | 40.0% [11.8, 76.9] | -0.75 ± 2.47 | 3 | 5 |" in text
    assert "| other | 2 | 50.0% [9.5, 90.5] |  | -0.75 ± 2.47 | 3 |  |" in text
    assert "Not played: visual_ood is for pictures." in text
    draw(tmp_path / "p.png", [graded, bare])
    with PIL.Image.open(tmp_path / "p.png") as picture:
        assert picture.width > 300 and len(set(picture.convert("RGB").getdata())) > 10
