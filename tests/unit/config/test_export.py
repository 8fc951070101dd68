"""A checkpoint's policy as a Hugging Face directory: whole and the same, or not there at all."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny import MODEL, tiny_config
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from rllib_vlm import cli
from rllib_vlm.algorithms.description import GENERATION, PROMPTING
from rllib_vlm.algorithms.manifest import MANIFEST, write_manifest
from rllib_vlm.config.export import export
from rllib_vlm.core.rl_module import VLMRLModule
from rllib_vlm.errors import CheckpointError, RLlibVLMError
from rllib_vlm.models.qwen2_5_vl import Qwen25VL
from rllib_vlm.types import SamplingParams
from tests.unit.models.conftest import make_hot, make_prompt

MODULE = Path("learner_group", "learner", "rl_module", "default_policy")
ODD = "a b \"q\" 'r' || x:y ünï 日本"
WRITTEN = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "rllib_vlm.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "value_head.safetensors",
}


class Bomb:
    """Goes off when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("something was unpickled",)


def module(**config):
    made = VLMRLModule(
        model_config={"family": "qwen2_5_vl", **MODEL, **config}, observation_space=None, action_space=None
    )
    make_hot(made.family)
    return made


def save(made: VLMRLModule, folder: Path) -> Path:
    """A checkpoint as an algorithm leaves it, its pickles replaced by such as must not be opened."""
    import pickle

    made.save_to_path(folder / MODULE)
    for name in ("algorithm_state.pkl", "class_and_ctor_args.pkl"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))
    for file in (folder / MODULE).glob("*.pkl"):
        file.write_bytes(pickle.dumps(Bomb()))
    (folder / "rllib_checkpoint.json").write_text("{}")
    config = tiny_config("ppo").prompting(history={"name": "last_k", "k": 2})
    described = {
        "algorithm": "VLMPPO",
        "warm_start_updates": 2,
        "updates": 7,
        "config": {**config.prompting_settings, **{name: getattr(config, name) for name in GENERATION}}
        | {"env": "frozen_lake", "env_config": {"size": 3}, "seed": 5, "_model_config": {"size": "tiny"}},
    }
    (folder / "policy.json").write_text(json.dumps(described))
    write_manifest(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    made = module(value_head={"width": 16})
    return made.family, save(made, tmp_path_factory.mktemp("saved") / "checkpoint_000000")


@pytest.fixture
def trial(saved, tmp_path):
    """A trial of two checkpoints, in a run of an odd name."""
    folder = tmp_path / f"run {ODD}" / "VLMPPO_frozen_lake_ab12_00000"
    for i in range(2):
        shutil.copytree(saved[1], folder / f"checkpoint_00000{i}")
    (folder / "params.json").write_text("{}")
    figures = {"success": 0.25, "episodes": 40, "interval": [0.142, 0.402]}
    (folder / "results.json").write_text(
        json.dumps({"final": figures, "details": {"final": {"num_updates": 9}}})
    )
    return folder


def answers_of_transformers(folder: Path, prompts, tokens: int):
    model = AutoModelForImageTextToText.from_pretrained(folder)
    images = AutoImageProcessor.from_pretrained(folder)
    answers = []
    for prompt in prompts:
        ids = torch.from_numpy(prompt.token_ids)[None]
        pictures = {}
        if prompt.images:
            pictures = dict(images(images=list(prompt.images), return_tensors="pt"))
            pictures["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
        out = model.generate(input_ids=ids, max_new_tokens=tokens, do_sample=False, **pictures)
        answers.append(out[0, ids.shape[1] :].tolist())
    return answers


def check_that_it_answers_as(family: Qwen25VL, folder: Path) -> None:
    prompts = [make_prompt(family, images, seed=seed) for images in range(4) for seed in range(3)]
    greedy = SamplingParams(temperature=0, max_new_tokens=12)
    ours = [ids.tolist() for ids, _ in family.generate(prompts, greedy)]
    assert answers_of_transformers(folder, prompts, 12) == ours
    assert len({tuple(ids) for ids in ours}) > 6  # or the same answer to everything would do


def test_plain_transformers_answers_as_the_policy_does(saved, tmp_path):
    family, checkpoint = saved
    done = export(checkpoint, tmp_path / "out")
    assert {path.name for path in done.directory.iterdir()} == WRITTEN
    check_that_it_answers_as(family, done.directory)
    tokenizer = AutoTokenizer.from_pretrained(done.directory)
    chat = [{"role": "system", "content": "be good"}, {"role": "user", "content": "go left"}]
    from rllib_vlm.types import Message

    theirs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    ours = family.encode([Message(role=m["role"], text=m["content"]) for m in chat])
    assert theirs == ours.token_ids.tolist()
    assert done.model.parameters == sum(p.numel() for p in family.model.parameters())
    again = Qwen25VL.build({"checkpoint": str(done.directory)})  # an experiment can begin from it
    assert again.banned_token_ids == family.banned_token_ids


def test_another_family_is_exported_by_the_same_code(tmp_path):
    made = module(family="mllama", num_layers=2, value_head=False)
    done = export(save(made, tmp_path / "checkpoint_000000"), tmp_path / "out")
    assert {path.name for path in done.directory.iterdir()} == WRITTEN - {"value_head.safetensors"}
    assert done.model.model_type == "mllama"
    prompts = [make_prompt(made.family, 0, words=words) for words in range(1, 5)]
    ours = [
        ids.tolist()
        for ids, _ in made.family.generate(prompts, SamplingParams(temperature=0, max_new_tokens=8))
    ]
    assert answers_of_transformers(done.directory, prompts, 8) == ours


def test_without_its_bans_transformers_would_say_what_no_policy_says(saved, tmp_path):
    """What the generation config is for, and that older checkpoints, which have no such file, get it."""
    family, checkpoint = saved
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint_000000")
    (folder / MANIFEST).unlink()
    hf = folder / MODULE / "hf"
    (hf / "generation_config.json").write_text('{"eos_token_id": 2, "pad_token_id": 0}')
    prompts = [make_prompt(family, images, seed=seed) for images in range(4) for seed in range(3)]
    said = {token for answer in answers_of_transformers(hf, prompts, 12) for token in answer}
    assert said & set(family.banned_token_ids)
    done = export(folder, tmp_path / "out")
    assert any("manifest.json" in note for note in done.notes)
    check_that_it_answers_as(family, done.directory)


def test_adapters_are_merged(tmp_path):
    made = module(value_head=False, lora={"rank": 4, "target": ["q_proj", "v_proj", "down_proj"]})
    adapters = [p for name, p in made.family.model.named_parameters() if "lora_B" in name]
    assert all(p.abs().min() > 0 for p in adapters)  # made hot like all the rest: they do not stand idle
    done = export(save(made, tmp_path / "checkpoint_000000"), tmp_path / "out")
    assert {path.name for path in done.directory.iterdir()} == WRITTEN - {"value_head.safetensors"}
    names = list(load_file(done.directory / "model.safetensors"))
    assert not [name for name in names if "lora" in name or "base_layer" in name]
    check_that_it_answers_as(made.family, done.directory)
    told = json.loads((done.directory / "rllib_vlm.json").read_text())
    assert told["value_head"] is None


def test_the_card_and_the_settings_say_what_the_run_knows(trial, tmp_path):
    done = export(trial.parent, tmp_path / "out")
    assert done.checkpoint == trial / "checkpoint_000001" and not done.notes
    told = json.loads((done.directory / "rllib_vlm.json").read_text())
    assert (told["algorithm"], told["seed"]) == ("VLMPPO", 5)
    assert told["updates"] == {"warm_start": 2, "reinforcement_learning": 7}
    assert set(told["prompting"]) == set(PROMPTING) == set(tiny_config().prompting_settings)
    assert told["prompting"]["history"] == {"name": "last_k", "k": 2}
    again = tiny_config().prompting(**told["prompting"]).generation(**told["generation"])
    again.validate()
    card = (done.directory / "README.md").read_text(encoding="utf-8")
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "transformers"
    for said in (
        "# VLMPPO on frozen_lake",
        "| base model | none: random weights of size tiny |",
        f"| size | {done.model.parameters:,} parameters, float32 |",
        "| seed | 5 |",
        "| updates | 2 of imitation, 7 of reinforcement learning |",
        "25.0% (14.2 to 40.2), 40 episodes, after 9 updates of reinforcement learning",
        "max_new_tokens=5",
    ):
        assert said in body
    block = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])["config"]
    assert block["prompting"] == told["prompting"] and block["generation"] == told["generation"]


def test_settings_of_an_older_checkpoint_come_from_the_trials_folder(trial, tmp_path):
    checkpoint = trial / "checkpoint_000001"
    settings = json.loads((checkpoint / "policy.json").read_text())["config"]
    settings["_model_config"] = {"checkpoint": "/home/somebody/models/my | model"}
    (trial / "params.json").write_text(json.dumps(settings))
    for name in ("policy.json", MANIFEST):
        (checkpoint / name).unlink()
    done = export(trial, tmp_path / "out")
    told = json.loads((done.directory / "rllib_vlm.json").read_text())
    assert told["algorithm"] == "VLMPPO" and told["updates"] is None
    assert told["prompting"]["history"] == {"name": "last_k", "k": 2}
    card = (done.directory / "README.md").read_text(encoding="utf-8")
    assert r"| base model | my \| model |" in card and "somebody" not in card


@pytest.mark.parametrize("text", [None, "", "[1]", '{"config": 5, "updates": "x", "algorithm": null}'])
def test_what_nobody_knows_is_left_out(saved, tmp_path, text):
    folder = shutil.copytree(saved[1], tmp_path / "checkpoint_000000")
    (folder / "policy.json").unlink() if text is None else (folder / "policy.json").write_text(text)
    write_manifest(folder)
    done = export(folder, tmp_path / "out")
    assert "which prompts" in done.notes[0]
    assert json.loads((done.directory / "rllib_vlm.json").read_text())["prompting"] is None
    assert "is not known" in (done.directory / "README.md").read_text(encoding="utf-8")


def test_a_template_of_the_users_own_goes_along(trial, tmp_path):
    template = tmp_path / "my prompt.md"
    template.write_text("You are {{ description }}")
    checkpoint = trial / "checkpoint_000001"
    described = json.loads((checkpoint / "policy.json").read_text())
    described["config"]["template"] = str(template)
    (checkpoint / "policy.json").write_text(json.dumps(described))
    write_manifest(checkpoint)
    done = export(trial, tmp_path / "out")
    told = json.loads((done.directory / "rllib_vlm.json").read_text())
    assert (done.directory / told["prompting"]["template"]).read_text() == template.read_text()
    template.unlink()
    done = export(trial, tmp_path / "other")
    assert "my prompt.md is not on this machine" in done.notes[0]


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def change_a_tensor(file: Path, change) -> None:
    tensors = load_file(file)
    (name,) = [name for name in tensors if name.endswith("layers.0.mlp.down_proj.weight")]
    tensors |= change(name, tensors.pop(name))
    save_file(tensors, file, metadata={"format": "pt"})


def without_a_tensor(file: Path) -> None:
    change_a_tensor(file, lambda name, tensor: {})


def with_another_shape(file: Path) -> None:
    change_a_tensor(file, lambda name, tensor: {name: tensor[:1].clone()})


DAMAGE = {
    "hf/": (shutil.rmtree, "hf", "hf/ is missing"),
    "no weights": (Path.unlink, "hf/model.safetensors", "model.safetensors is missing"),
    "cut weights": (cut, "hf/model.safetensors", "model.safetensors is cut off or corrupt"),
    "longer": (lambda f: f.write_bytes(f.read_bytes() + b"x"), "hf/model.safetensors", "cut off or corrupt"),
    "zeros": (
        lambda f: f.write_bytes(b"\0" * f.stat().st_size),
        "hf/model.safetensors",
        "cut off or corrupt",
    ),
    "empty": (lambda f: f.write_bytes(b""), "hf/model.safetensors", "cut off or corrupt"),
    "fewer": (
        without_a_tensor,
        "hf/model.safetensors",
        "lack 1 of the model's tensors, e.g. 'model.language",
    ),
    "shape": (with_another_shape, "hf/model.safetensors", "another shape of 1 of the model's tensors"),
    "config": (lambda f: f.write_text('{"model_type": "nonsense"}'), "hf/config.json", "cannot open it: "),
    "no config": (Path.unlink, "hf/config.json", "config.json is missing"),
    "tokenizer": (Path.unlink, "hf/tokenizer.json", "tokenizer.json is missing"),
    "cut tokenizer": (cut, "hf/tokenizer.json", "tokenizer.json is cut off or no JSON"),
    "no tokenizer": (lambda f: f.write_text("{}"), "hf/tokenizer.json", "cannot open it: "),
    "template": (Path.unlink, "hf/chat_template.jinja", "chat_template.jinja is missing"),
    "critic": (cut, "value_head.safetensors", "value_head.safetensors is cut off or corrupt"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_torn_checkpoint_is_refused_and_the_newest_whole_one_named(kind, trial, tmp_path):
    harm, name, message = DAMAGE[kind]
    torn = trial / "checkpoint_000001"
    (torn / MANIFEST).unlink()  # as those have none that were written before there were any
    harm(torn / MODULE / name)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError) as caught:
        export(trial, tmp_path / "new" / "out")
    said = str(caught.value)
    assert message in said and "\n" not in said
    assert said.endswith(f"The newest whole one of its run is {trial / 'checkpoint_000000'}")
    assert sorted(tmp_path.iterdir()) == before
    export(trial / "checkpoint_000000", tmp_path / "new" / "out")


def test_a_changed_bit_is_seen_by_the_manifest_and_other_trials_are_offered_last(trial, tmp_path):
    other = shutil.copytree(trial, trial.with_name("VLMPPO_frozen_lake_ab12_00001"))
    for i in range(2):
        file = trial / f"checkpoint_00000{i}" / MODULE / "hf" / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        export(trial, tmp_path / "out")
    assert "model.safetensors is not what was written" in str(caught.value)
    assert str(caught.value).endswith(str(other / "checkpoint_000001"))
    shutil.rmtree(other)
    with pytest.raises(CheckpointError, match="is not what was written.$"):
        export(trial, tmp_path / "out")


def test_a_checkpoint_without_its_first_file_is_a_torn_one(trial, tmp_path):
    (trial / "checkpoint_000001" / "rllib_checkpoint.json").unlink()
    with pytest.raises(CheckpointError, match=r"rllib_checkpoint.json is missing.*checkpoint_000000$"):
        export(trial / "checkpoint_000001", tmp_path / "out")
    with pytest.raises(RLlibVLMError, match="holds no checkpoint"):
        export(tmp_path, tmp_path / "out")


def test_an_algorithm_of_another_kind_is_refused(tmp_path):
    (tmp_path / "checkpoint_000000" / "learner_group").mkdir(parents=True)
    (tmp_path / "checkpoint_000000" / "rllib_checkpoint.json").write_text("{}")
    with pytest.raises(CheckpointError, match="hf/ is missing"):
        export(tmp_path, tmp_path / "out")


def test_a_folder_with_something_in_it_is_kept_unless_told_otherwise(trial, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    export(trial, target)  # empty: nothing to lose
    (target / "mine.txt").write_text("mine")
    with pytest.raises(RLlibVLMError, match="is not empty.*--overwrite"):
        export(trial, target)
    assert (target / "mine.txt").read_text() == "mine"
    export(trial, target, overwrite=True)
    assert {path.name for path in target.iterdir()} == WRITTEN
    link = tmp_path / "link"
    link.symlink_to(target)
    assert export(trial, link, overwrite=True).directory == target and link.is_symlink()
    (tmp_path / "file").touch()
    with pytest.raises(RLlibVLMError, match="is a file"):
        export(trial, tmp_path / "file", overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "link", "file", trial.parent.name}


def test_what_must_not_be_lost_is_never_replaced(trial, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (trial, trial.parent, trial / "checkpoint_000001", Path(), Path.home(), Path("/")):
        with pytest.raises(RLlibVLMError, match="cannot be replaced"):
            export(trial, folder, overwrite=True)
    with pytest.raises(RLlibVLMError, match="a folder of this machine"):
        export(trial, "s3://bucket/out")
    assert (trial / "checkpoint_000001" / "rllib_checkpoint.json").is_file()


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(trial, tmp_path):
    old = tmp_path / "old"
    export(trial, old)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # no file of this process may grow beyond it
    try:
        for target in (old, tmp_path / "new" / "deep" / "out"):
            with pytest.raises(RLlibVLMError, match=r"cannot be exported to .*: File too large"):
                export(trial, target, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("place", ["file/out", "x" * 300, "/proc/out", "/proc/1/nowhere/out"])
def test_a_place_that_cannot_be_written_is_one_clear_error(place, trial, tmp_path):
    (tmp_path / "file").touch()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RLlibVLMError, match="cannot be exported to"):
        export(trial, tmp_path / place)
    assert sorted(tmp_path.iterdir()) == before


def run(*argv: object) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(a) for a in argv])
    return caught.value.code


def test_the_command(trial, tmp_path, capsys):
    target = tmp_path / "exported" / ODD
    assert run("export", trial.parent, target) == 0
    said = capsys.readouterr()
    assert f"checkpoint: {trial / 'checkpoint_000001'}" in said.out and str(target) in said.out
    assert {path.name for path in target.iterdir()} == WRITTEN
    assert run("export", trial.parent, target) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert run("export", trial.parent, target, "--overwrite") == 0
    assert run("export", trial.parent) == 2
    assert run("export", tmp_path / "nowhere", target) == 2
    assert run("export", "x" * 300, target) == 2
    assert run("export", "~nobody-of-this-name", target) == 2
    assert "Traceback" not in capsys.readouterr().err
