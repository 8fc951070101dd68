"""`rllib evaluate`, by split and by suite, on a checkpoint of a tiny walker."""

import json
from pathlib import Path

import PIL.Image
import pytest
from tiny import tiny_config

from rllib_vlm import cli

pytestmark = pytest.mark.usefixtures("ray_cluster")
CITY = {"style": "nyc", "routes": 10, "seed": 0, "width": 128}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """Of a policy that knows nothing; 3 routes at once."""
    config = tiny_config("ppo", observation="vision").environment("streetview")
    config.env_config = {"city": CITY, "resolution": 16, "verify_iter": 2}
    config = (
        config.env_runners(num_envs_per_env_runner=3)
        .prompting(parser="no_think", observation="vision")
        .evaluation(evaluation_duration=2, evaluation_config={"temperature": 0.5})
    )
    algorithm = config.build_algo()
    folder = tmp_path_factory.mktemp("run") / "trial" / "checkpoint_000000"
    try:
        algorithm.save_to_path(folder)
    finally:
        algorithm.stop()
    return folder


def run(*argv: object) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(a) for a in argv])
    return caught.value.code


def test_a_split_is_played(checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    change = "environment.env_config.action_set=relative"
    assert run("evaluate", checkpoint, "--episodes", 3, "--split", "rule_ood", "--set", change) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["num_episodes"] == 3 and 0.0 <= told["interval_low"] <= told["interval_high"] <= 1.0
    assert told["sim/rail_length"] > 2
    assert run("evaluate", checkpoint, "--split", "rule_od") == 2
    assert "Did you mean 'rule_ood'" in capsys.readouterr().err


def test_a_suite_is_played_and_written(checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    wanted = ("--suite", "virl", "--episodes", 4, "--set", "generation.max_new_tokens=6")
    assert run("evaluate", checkpoint, *wanted) == 0
    table = Path(capsys.readouterr().out.splitlines()[-1])
    folder = checkpoint.parent / "virl_checkpoint_000000"
    assert table == folder / "table.md"
    results = json.loads((folder / "results.json").read_text())
    assert [part["part"] for part in results["parts"]] == ["in_distribution", "rule_ood", "visual_ood"]
    for part in results["parts"]:
        lines = [json.loads(line) for line in (folder / f"{part['part']}.jsonl").read_text().splitlines()]
        routes = [line for line in lines if line["record"] == "route"]
        steps = [line for line in lines if line["record"] == "step"]
        assert [route["sample_id"] for route in routes] == [0, 1, 2, 3]
        assert {route["task"]["split"] for route in routes} == {part["split"]}
        assert part["decoding"]["temperature"] == 0.5 and part["decoding"]["max_new_tokens"] == 6
        for route in routes:
            own = [step for step in steps if step["sample_id"] == route["sample_id"]]
            assert sum(step["reward"] for step in own) == pytest.approx(route["reward"])
            assert own[0]["veri_step"] == 1 and {step["veri_step"] for step in own} <= {1, 2}
            assert route["verification_steps"] == len(own)
        assert lines[-1] == {"record": "total", **part} and part["verification_steps"] == len(steps)
        assert f"| {part['part']} | 4 |" in table.read_text()
    assert results["parts"][1]["env_config"]["action_set"] == "relative"
    assert "action_set" not in results["parts"][2]["env_config"]
    with PIL.Image.open(folder / "suite.png") as picture:
        assert picture.format == "PNG"
    assert run("evaluate", checkpoint, *wanted) == 2, "what was measured is not overwritten"
    assert "--out" in capsys.readouterr().err


def test_runners_elsewhere_play_the_same(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    told = {}
    for runners in (0, 1):
        out = tmp_path / str(runners)
        choice = ("--part", "in_distribution", "--episodes", 2, "--out", out)
        greedy = ("--set", "evaluation.evaluation_config={temperature: 0.0}")
        count = f"env_runners.num_env_runners={runners}"
        assert run("evaluate", checkpoint, "--suite", "virl", *choice, *greedy, "--set", count) == 0
        assert "2/2" in capsys.readouterr().err, "the bar ends where the episodes do"
        told[runners] = (out / "in_distribution.jsonl").read_text()
    assert told[0] == told[1]
