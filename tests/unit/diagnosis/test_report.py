"""The diagnosis in words, as JSON and as a picture."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from rich.console import Console

from rllib_vlm.diagnosis import curves as c
from rllib_vlm.diagnosis.findings import FINDINGS
from rllib_vlm.diagnosis.picture import PANELS
from rllib_vlm.diagnosis.report import report
from rllib_vlm.errors import RLlibVLMError


@pytest.fixture
def tell() -> Callable[..., tuple[str, dict[str, Any]]]:
    def run(*args: Any, **options: Any) -> tuple[str, dict[str, Any]]:
        stream = io.StringIO()
        told = report(*args, **options, console=Console(file=stream, width=200))
        return stream.getvalue(), told

    return run


def no_end(update: int) -> dict[str, Any]:
    return {} if update < 20 else {c.TURNS: 30.0, c.SUCCESS: 0.0}


def test_a_healthy_run_is_told_so(write_trial, tell):
    text, told = tell(write_trial())
    assert "30 updates of reinforcement learning (updates 1 to 30), after 3 of imitation." in text
    assert "success: 45% at first, 79% at last" in text or "success: 44% at first, 78% at last" in text
    assert "Nothing was found." in text
    assert told["trials"][0]["findings"] == []


def test_findings_are_told_with_numbers_updates_and_settings(write_trial, tell):
    text, told = tell(write_trial(no_end, settings={"bootstrap_truncated": True}))
    assert "Nothing was found" not in text
    assert "Episodes run out of turns and never end, updates 20 to 30" in text
    assert "training.bootstrap_truncated false:" in " ".join(text.split())
    assert "(now true)" in text
    finding = told["trials"][0]["findings"][1]
    assert finding["name"] == "never_ending" and finding["updates"] == list(range(20, 31))
    assert finding["changes"][0]["now"] is True
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_settings_that_json_has_no_number_for_are_told_as_text(write_trial, tell):
    _, told = tell(write_trial(no_end, settings={"bootstrap_truncated": float("inf")}))
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_the_picture_lies_beside_the_results_or_where_it_is_asked_for(write_trial, tell, tmp_path: Path):
    folder = write_trial(no_end)
    _, told = tell(folder.parent)
    assert told["trials"][0]["picture"] == str(folder / "diagnosis.png")
    image = PIL.Image.open(folder / "diagnosis.png")
    image.load()
    assert image.width > 1000 and image.height > 800
    tell(folder, out=tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").is_file()
    tell(folder, out=tmp_path / "new")
    assert {f.name for f in (tmp_path / "new").iterdir()} == {"a.png", "diagnosis.png"}, (
        "nothing else is left"
    )


def test_a_place_that_cannot_be_written_is_one_error(write_trial, tell, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RLlibVLMError, match="cannot write .* give --out another place"):
        tell(write_trial(), out=tmp_path / "file" / "a.png")


def test_every_trial_is_told_in_turn(write_trial, tell, tmp_path: Path):
    run = write_trial().parent
    write_trial(no_end, name="VLMPPO_x_00001")
    empty = run / "VLMPPO_x_00002"
    empty.mkdir()
    (empty / "result.json").write_text("")
    text, told = tell(run, out=tmp_path / "pictures")
    assert text.index("VLMPPO_x_00000") < text.index("Nothing was found") < text.index("VLMPPO_x_00001")
    assert [len(trial["findings"]) for trial in told["trials"]] == [0, 2]
    assert f"left out: {empty / 'result.json'} holds no result" in text and len(told["left_out"]) == 1
    assert {f.name for f in (tmp_path / "pictures").iterdir()} == {"VLMPPO_x_00000.png", "VLMPPO_x_00001.png"}
    (tmp_path / "a.png").write_text("")
    with pytest.raises(RLlibVLMError, match="is a file, and .* holds 3 trials"):
        tell(run, out=tmp_path / "a.png")


def test_imitation_alone_is_told_and_drawn(write_trial, tell):
    text, told = tell(write_trial(numbers=range(0)))
    assert "3 updates of imitation and none of reinforcement learning." in text
    assert "Nothing was found" not in text
    assert Path(told["trials"][0]["picture"]).is_file()


def test_a_run_without_a_figure_is_told_without_a_picture(tell, tmp_path: Path):
    (tmp_path / "result.json").write_text('{"done": false}\n')
    text, told = tell(tmp_path)
    assert "No update of the policy is recorded." in text
    assert told["trials"][0]["picture"] is None and not (tmp_path / "diagnosis.png").exists()


@pytest.mark.parametrize(
    ("kind", "said"),
    [("alarm", "Nothing was found beside what the guard saw."), ("sign", "Nothing was found.")],
)
def test_a_run_in_which_the_guard_saw_something_is_not_told_to_be_without_fault(
    write_trial, tell, kind, said
):
    event = {"event": kind, "update": 4, "vital": "success", "value": 0.2, "usual": 0.6}
    text, _ = tell(write_trial(numbers=range(1, 31), events=[event]))
    assert said in text.splitlines()


def test_a_rolled_back_run_with_the_guard_s_events_is_drawn(write_trial, tell):
    events = [{"event": "alarm", "update": u, "vital": "kl", "value": 1.0} for u in range(11, 16)]
    events.insert(0, {"event": "sign", "update": 4, "vital": "grad_norm", "value": 9.0, "usual": 1.5})
    events.append({"event": "rollback", "update": 15, "to": 10, "why": []})
    folder = write_trial(numbers=[*range(1, 16), *range(11, 31)], events=events)
    text, told = tell(folder)
    assert "guard: 5 alarms in updates 11 to 15" in text
    assert "guard at update 4: sign, grad_norm 9, usually 1.5" in text
    assert "guard at update 15: went back to update 10" in text
    assert len(told["trials"][0]["events"]) == 7
    plain = np.asarray(PIL.Image.open(folder / "diagnosis.png"))
    (folder / "events.jsonl").unlink()
    tell(folder)
    without = np.asarray(PIL.Image.open(folder / "diagnosis.png"))
    assert plain.shape != without.shape or (plain != without).any(), "events are marked"


def test_figures_that_are_not_finite_are_drawn_as_gaps(write_trial, tell):
    folder = write_trial(lambda u: {c.RATIO_MAX: np.inf, c.GRAD_NORM: np.nan, c.KL: 0.0, c.CUT_ANSWERS: None})
    tell(folder)
    assert (folder / "diagnosis.png").is_file()


def test_what_a_finding_looks_at_has_a_panel():
    drawn = {panel.metric for panel in PANELS} | {panel.beside for panel in PANELS}
    for check in FINDINGS:
        assert drawn & set(check.looks_at), check.name
