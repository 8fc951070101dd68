"""The collapse benchmark's sums, from runs that stand in a file: nothing is run, Ray is not started."""

from __future__ import annotations

import json

import pytest

from benchmarks.collapse import FAULTS, Run, run, settings
from rllib_vlm.errors import RLlibVLMError


def row(fault, success, *, guarded=True, seed=0, **more):
    return {
        "fault": fault, "guarded": guarded, "seed": seed, "success": success, "warm_start": 0.5, "rollbacks": 0,
        "signs": 0, "alarms": 0, "stopped": "", "cpu_s": 50.0, "settings": settings(Run(fault=fault)), **more,
    }  # fmt: skip


def written(tmp_path, rows, end=""):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows) + end)
    return f"out={file}"


def test_runs_that_stand_in_the_file_are_summed_up_and_not_run_again(tmp_path):
    names = list(FAULTS)
    rows = [row("undisturbed", 0.8, seed=seed) for seed in range(10)]
    rows[3] |= {"rollbacks": 1, "alarms": 4}
    rows[4] |= {"signs": 1}
    rows[5] |= {"signs": 2}
    rows += [row(name, 0.1, guarded=False, seed=seed) for name in names[1:] for seed in range(3)]
    rows += [
        row(names[0], success, guarded=False, seed=seed) for seed, success in enumerate((0.76, 0.9, 0.7))
    ]
    rows += [row(name, 0.76, rollbacks=1, seed=seed) for name in names[:-1] for seed in range(3)]
    rows += [row(names[-1], success, seed=seed) for seed, success in enumerate((0.9, 0.9))]
    rows += [row(names[-1], 0.0, seed=2, stopped="no healthy state")]
    found = run(written(tmp_path, rows, end='{"fault": "undist'))
    assert (found["value"], found["unit"]) == (4, "of 5 faults survived")
    details = found["details"]
    assert details["warm start: success"] == 0.5
    assert details["undisturbed: success"] == 0.8
    assert details["undisturbed runs rolled back or stopped"] == 1
    assert details["undisturbed runs with an alarm"] == 1
    assert details["undisturbed runs with a sign that stands alone"] == 2
    assert details["faults that harm a run without guard"] == 4
    assert details[f"{names[0]}, guarded: rollbacks"] == 3
    assert details[f"{names[-1]}, guarded: success"] == 0.6
    assert details[f"{names[-1]}, guarded: from undisturbed runs of the same seeds"] == -0.2
    assert details[f"{names[-1]}, guarded: stopped"] == "no healthy state"
    assert details["CPU-seconds, all runs"] == 40 * 50.0


def test_seeds_are_compared_with_undisturbed_runs_of_the_same_seeds(tmp_path):
    rows = [row("undisturbed", success, seed=seed) for seed, success in enumerate((0.8, 0.5, 0.1))]
    rows += [row("nan_gradients", 0.0, guarded=False, seed=seed) for seed in (0, 1)]
    rows += [row("nan_gradients", success, seed=seed) for seed, success in enumerate((0.78, 0.44))]
    rows[3] |= {"mended": 0.3}
    found = run("nan_gradients", "undisturbed", "healthy=3", "seeds=2", written(tmp_path, rows))
    assert (found["value"], found["unit"]) == (1, "of 1 faults survived")
    assert found["details"]["nan_gradients, guarded: from undisturbed runs of the same seeds"] == -0.04
    assert found["details"]["undisturbed runs"] == 3
    taken_away = "success once the fault is taken away"
    assert found["details"][f"nan_gradients, without guard: {taken_away}"] == 0.3
    assert f"nan_gradients, guarded: {taken_away}" not in found["details"]


def test_parts_are_compared_with_an_undisturbed_run(tmp_path):
    out = written(
        tmp_path,
        [row("undisturbed", 0.8), row("nan_gradients", 0.0, guarded=False), row("nan_gradients", 0.9)],
    )
    found = run("nan_gradients", "seeds=1", out)
    assert (found["value"], found["unit"]) == (1, "of 1 faults survived")
    assert found["details"]["undisturbed runs"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nan_gradient"], "Did you mean 'nan_gradients'"),
        (["healty=3"], "Did you mean 'healthy'"),
        (["healthy=no"], "healthy=no: not a whole number"),
        (["processes=0"], "processes=0: not a whole number"),
    ],
)
def test_wrong_arguments_are_told_before_anything_starts(arguments, said):
    with pytest.raises(RLlibVLMError, match=said):
        run(*arguments)


def test_rows_of_other_settings_are_refused(tmp_path):
    out = written(
        tmp_path,
        [
            row(
                "undisturbed",
                0.8,
                settings={**settings(Run(fault="undisturbed")), "fault": {"after": 1, "updates": 1}},
            )
        ],
    )
    with pytest.raises(RLlibVLMError, match="undisturbed, guarded, seed 0 was run with other settings"):
        run("undisturbed", "healthy=1", out)
