import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rllib_vlm import cli

FILE = """
x:
  run: PPO
  env: CartPole-v1
  config:
    training: {lr: 1e-4}
"""


def run(*argv: object) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(a) for a in argv])
    return caught.value.code


def test_an_installed_package_adds_subcommands_and_a_broken_one_breaks_no_other(tmp_path: Path):
    info = tmp_path / "tides-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tides\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[rllib_vlm.commands]\ntides = tides:app\nebb = tides:gone\nflow = tides:root\nlist = tides:app\n"
        "neap = tides:badly\nspring = leaving:app\n"
    )
    lines = ("import typer", "app = typer.Typer()", "@app.callback()", "def root(): pass", "@app.command()",
             "def high(): print('at noon')")  # fmt: skip
    badly = ("badly = typer.Typer()", "@badly.command()", "def low(a: list[list[int]]): pass")
    (tmp_path / "tides.py").write_text("\n".join((*lines, *badly)))
    (tmp_path / "leaving.py").write_text("import sys; sys.exit()")
    code = "from rllib_vlm import cli; cli.main(['tides', 'high'])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "at noon\n"), done.stderr
    said = done.stderr.splitlines()
    assert [line.split(".")[0] for line in said] == [
        f"rllib {n} is left out" for n in ("ebb", "flow", "list", "neap", "spring")
    ]
    assert "module 'tides' has no 'gone'" in said[0] and "has to be a typer.Typer" in said[1]
    assert "There is a command of this name" in said[2] and "SystemExit" in said[4]


def test_help_is_fast_because_neither_torch_nor_ray_is_loaded():
    code = (
        "import sys\nfrom rllib_vlm import cli\n"
        "try:\n    cli.main(['--help'])\nexcept SystemExit as e:\n    assert e.code == 0\n"
        "assert not {'torch', 'ray', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in (
        "train",
        "evaluate",
        "export",
        "diagnose",
        "validate",
        "example",
        "list",
        "demos",
    ):
        assert command in done.stdout


def test_validate_accepts_a_right_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "a.yaml"
    file.write_text(FILE)
    assert run("validate", file) == 0
    assert f"{file}: ok (x)" in capsys.readouterr().out
    strange = tmp_path / "\x1b]0;mine\x07.yaml"
    strange.write_text(FILE)
    assert run("validate", strange) == 0
    out = capsys.readouterr().out
    assert "\\x1b]0;mine\\x07.yaml: ok (x)" in out and not set("\x1b\x07") & set(out)


def test_validate_reports_every_mistake_of_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text(FILE.replace("lr:", "lrr:").replace("training:", "training: &t"))
    two.write_text(FILE.replace("run: PPO", "run: PPOO\n  sto: {}"))
    assert run("validate", one, two) == 2
    error = capsys.readouterr().err
    assert "validate: 3 problems" in error
    assert f"{one}:6: training: unknown key 'lrr'. Did you mean 'lr'?" in error
    assert f"{two}:4: unknown key 'sto'. Did you mean 'stop'?" in error
    assert "Traceback" not in error


def test_a_missing_file_is_a_clean_refusal(capsys: pytest.CaptureFixture[str]):
    assert run("train", "file", "nowhere.yaml") == 2
    assert "nowhere.yaml: no such file. `rllib example list`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ("train", "--run", "VLMPPO"),
        ("train", "--run", "VLMPPO", "--env", "spoc", "file", "x.yaml"),
        ("train", "file", "x.yaml", "--resume", "d", "--name", "a"),
        ("train", "file", "x.yaml", "--resume", "d", "--num-samples", "2"),
        ("train", "file", "x.yaml", "--resume", "d", "--overwrite"),
        ("no-such-command",),
    ],
)
def test_wrong_use_exits_with_two(argv: tuple[str, ...]):
    assert run(*argv) == 2


def test_overrides_are_checked_like_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "a.yaml"
    file.write_text(FILE)
    assert run("train", "file", file, "--set", "training.lrr=1", "--stop", "x") == 2
    error = capsys.readouterr().err
    assert "--set training.lrr: training: unknown key 'lrr'. Did you mean 'lr'?" in error
    assert "--stop x: write it as metric=number" in error


def test_evaluate_needs_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run("evaluate", tmp_path) == 2
    assert "holds no checkpoint" in capsys.readouterr().err


def test_diagnose_tells_of_a_run_and_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    trial = tmp_path / "run" / "trial"
    trial.mkdir(parents=True)
    lines = [
        {
            "num_updates": update,
            "env_runners": {"success_rate": 0.5},
            "learners": {"default_policy": {"policy_loss": 0.1, "num_skipped_steps": float(update == 4)}},
        }
        for update in range(1, 9)
    ]
    (trial / "result.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run("diagnose", trial.parent, "--json") == 0, "whatever was found"
    said = capsys.readouterr().out
    told = json.loads(said.splitlines()[-1])
    assert [f["name"] for f in told["trials"][0]["findings"]] == ["skipped_steps"]
    assert "Steps were skipped, or losses not finite, update 4" in said and "training.precision" in said
    assert (trial / "diagnosis.png").is_file()
    assert run("diagnose", trial, "--out", tmp_path / "a.png") == 0
    assert (tmp_path / "a.png").is_file() and str(tmp_path / "a.png") in capsys.readouterr().out


@pytest.mark.parametrize("path", ["", "nowhere", "empty"])
def test_diagnose_of_what_is_no_run_is_refused(path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "result.json").touch()
    where = tmp_path / path if path else tmp_path / "empty" / "result.json"
    assert run("diagnose", where) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and str(where) in error


def test_list_shows_the_registry_and_cuts_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "70")
    assert run("list", "parsers") == 0
    shown = "".join(capsys.readouterr().out.split())
    code = "rllib_vlm.prompts.tagged:GroundingWorldModeling"
    assert f"grounding_worldmodeling{code[:34]}" in shown and code[34:] in shown, "folded"
    monkeypatch.setenv("COLUMNS", "30")
    assert run("list", "parsers") == 0
    assert "…" not in capsys.readouterr().out
    assert run("list", "simulatorss") == 2
    assert "Did you mean 'simulators'" in capsys.readouterr().err


def test_examples_are_listed_and_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from rllib_vlm.config.resources import examples

    assert run("example", "list") == 0
    listed = capsys.readouterr().out
    assert "rises." in listed and "from two cameras." in listed
    told = "".join(listed.split())
    assert "moreofthesameinplaceofitsrewards." in told, "a sentence ends on a later line of the file"
    assert "rllibtrainfile" not in told, "and is the first one"
    for name, file in examples().items():
        assert name in listed
        copy = tmp_path / f"{Path(name).name}.copy"
        assert run("example", "get", name, "-o", copy) == 0
        assert copy.read_text() == file.read_text()
        assert run("example", "get", name, "-o", copy) == 2, "never overwrites"
    assert run("example", "get", "no-such-example") == 2


def test_what_a_terminal_takes_for_commands_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run("validate", tmp_path / "\x1b]0;mine\x07.yaml") == 2
    error = capsys.readouterr().err
    assert "\\x1b]0;mine\\x07.yaml: no such file" in error
    assert not set("\x1b\x07") & set(error)


def test_demos_fill_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "demos"
    assert run("demos", "frozen_lake", folder, "--episodes", 2, "--set", "size=4") == 0
    assert "2 episodes" in capsys.readouterr().out
    manifests = [json.loads(f.read_text()) for f in folder.glob("*.json")]
    assert any(m.get("env_config") == {"size": 4} for m in manifests)
    assert run("demos", "frozen_lak", folder) == 2


def test_demos_write_conversations(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "cards.json"
    asked = ("demos", "cards", file, "--format", "llava", "--episodes", 3, "--set", "observation=text")
    assert run(*asked, "--prompting", "template=short") == 0
    assert "3 conversations" in capsys.readouterr().out
    items = json.loads(file.read_text())
    assert [m["from"] for m in items[0]["conversations"]] == ["human", "gpt"]
    assert json.loads(items[0]["conversations"][1]["value"]).keys() == {"cards", "number", "formula"}
    assert run(*asked) == 2, "never overwrites"
    assert run("demos", "cards", tmp_path / "x", "--format", "lava") == 2
    assert run("demos", "cards", tmp_path / "x", "--split", "rule_odd") == 2
    assert "has no 'rule_odd'. Did you mean 'rule_ood'?" in capsys.readouterr().err
    assert run("demos", "cards", tmp_path / "x", "--prompting", "template=short") == 2


LAKE = "tuned_examples/frozen_lake_grpo.yaml"


def test_a_folder_that_is_taken_is_refused_and_only_a_run_is_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tuner.pkl").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    train = ("train", "file", LAKE, "--storage", tmp_path)
    for arguments, why in (
        (("--name", "run"), f"run holds a run already; go on with it (--resume {tmp_path / 'run'})"),
        (("--name", "mine"), "mine exists and is no run's folder"),
        (("--name", "mine", "--overwrite"), "mine exists and is no run's folder"),
        (("--name", "file", "--overwrite"), "file exists and is no run's folder"),
        (("--overwrite",), "give --name too"),
    ):
        assert run(*train, *arguments) == 2
        error = capsys.readouterr().err
        assert why in error and error.count("\n") == 1, error
    assert (tmp_path / "mine" / "thesis.tex").exists() and (tmp_path / "file").exists()


@pytest.mark.parametrize("storage", ["~no-such-user", "file/below", "x" * 300, "bogus://x"])
def test_a_storage_that_cannot_be_written_is_refused_before_ray_starts(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import ray

    before = ray.is_initialized()  # other tests may have a cluster up
    lake = Path(LAKE).resolve()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for name in (("--name", "a"), ()) if "://" not in storage else (("--name", "a"),):
        assert run("train", "file", lake, "--storage", storage, *name) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: --storage ") and error.count("\n") == 1, error
    assert ray.is_initialized() == before


def test_what_the_machine_refuses_is_one_line_with_the_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    assert run("example", "get", "spoc", "-o", tmp_path / "file" / "a.yaml") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert f"{tmp_path / 'file'}" in error and "File exists" in error


def test_of_several_experiments_the_one_with_the_longest_name_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "two.yaml"
    file.write_text(FILE.replace("x:", "lake:") + FILE.replace("x:", "lake_text:"))
    chosen = []
    monkeypatch.setattr(cli, "_run", lambda experiments, **_: chosen.extend(e.name for e in experiments))
    for folder in ("lake_2026-01-31_12-00-00", "lake_text_2026-01-31_12-00-00"):
        assert run("train", "file", file, "--resume", folder) == 0
    assert chosen == ["lake", "lake_text"]
    assert run("train", "file", file, "--resume", "mine") == 2
    assert "has the name of none of the experiments" in capsys.readouterr().err


def test_a_resumed_run_may_be_longer_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "tuner.pkl").touch()
    resume = ("train", "file", LAKE, "--resume", tmp_path)
    assert run(*resume, "--set", "training.lr=1", "--set", "num_samples=2", "--set", "stop.x=1") == 2
    error = capsys.readouterr().err
    assert "3 problems" in error and error.count("--set training.total_updates") == 3
    assert "--set training.lr: a resumed run keeps its settings" in error


@pytest.mark.parametrize("folder", ["", "nowhere", ".", "~no-such-user", "x" * 300])
def test_resume_of_what_is_no_run_is_refused_before_ray_starts(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import ray

    monkeypatch.chdir(tmp_path)
    before = ray.is_initialized()  # other tests may have a cluster up
    assert run("train", "file", "tuned_examples/frozen_lake_grpo.yaml", "--resume", folder) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and folder.strip(".")[:20] in error
    assert ray.is_initialized() == before and not list(tmp_path.iterdir())


def test_demos_checks_everything_before_it_makes_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "demos"
    assert run("demos", "frozen_lake", str(folder), "--set", "sizee=3", "--set", "max_steps=0") == 2
    said = capsys.readouterr().err
    assert "takes no 'sizee'. Did you mean 'size'?" in said and "max_steps is 0" in said
    assert not folder.exists()


def test_a_missing_file_does_not_hide_the_mistakes_of_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "a.yaml").write_text("x: 5")
    assert run("validate", str(tmp_path / "none.yaml"), str(tmp_path / "a.yaml")) == 2
    said = capsys.readouterr().err
    assert "no such file" in said and "must be a mapping" in said
