"""The study's runs: a start, and what goes on from it by reward or by more of the expert's answers."""

from __future__ import annotations

import json
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from rllib_vlm import registry
from rllib_vlm.callbacks.metrics import look_up
from rllib_vlm.config.conversations import write_conversations
from rllib_vlm.config.export import export
from rllib_vlm.config.loader import load
from rllib_vlm.config.resources import examples
from rllib_vlm.config.runner import register
from rllib_vlm.config.suite_records import totals
from rllib_vlm.env.tasks import Task
from rllib_vlm.env.vlm_env_runner import VLMEnvRunner
from rllib_vlm.files import new_folder, write_text
from rllib_vlm.sims.streetview.suite import VIRL
from rllib_vlm.sims.suite import Part

STARTS = ("broad", "narrow")
_PLAN = ("demonstrations", "start_updates", "every", "points", "episodes")  # fields of a Comparison
ARMS = ("rl", "sft")  # the second may use what the first has used
_SETTINGS = (
    "env_runners.num_env_runners=0",
    "env_runners.num_envs_per_env_runner=64",
    "learners.num_learners=0",
    "evaluation.evaluation_at=[]",
)
_TOKENS = "learners/__all_modules__/num_tokens_trained_lifetime"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A task, and how much of what is done."""

    simulator: str
    parts: tuple[Part, ...]  # what is tested
    # Arguments of the simulator, over the examples' own: the training world, then those a broad start also sees.
    worlds: tuple[Mapping[str, Any], ...]
    demonstrations: int  # of each world; 0 has the expert play in the last one, as the example says
    start_updates: int
    every: int  # updates of RL from one test to the next
    points: int  # such stretches
    episodes: int  # of each part, each time


# The paper, too, tests in distribution on deals of training.
_CARDS = tuple(
    Part(name=name, split=split, episodes=128, env_config=world)
    for name, split, world in (
        ("in_distribution", "train", {}),
        ("other_rule", "train", {"face_cards": "rank"}),
        ("other_suits", "train", {"suits": "red"}),
        ("new_numbers", "heldout", {}),
        ("rule_ood", "rule_ood", {}),  # new numbers under the other rule
        ("visual_ood", "visual_ood", {}),  # new numbers of the other suits
    )
)
COMPARISONS: dict[str, Comparison] = {
    "virl": Comparison(
        simulator=VIRL.simulator,
        parts=VIRL.parts,
        worlds=({}, {"action_set": "relative"}, {"city": {"style": "sf", "routes": 1000, "seed": 1}}),
        demonstrations=640,
        start_updates=24,
        every=4,
        points=3,
        episodes=48,
    ),
    "cards": Comparison(
        simulator="cards",
        parts=_CARDS,
        worlds=({}, {"face_cards": "mixed", "suits": "mixed"}),
        demonstrations=0,
        start_updates=24,
        every=20,
        points=3,
        episodes=128,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One of the runs to make."""

    task: str
    start: str
    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.task} from {self.start}, {self.arm}, seed {self.seed}"


def settings(task: str) -> dict[str, Any]:
    """By which rows are known to be of this benchmark as it is; what an example's comments say is no part of it."""
    made = COMPARISONS[task]
    texts = {arm: examples()[_example(task, arm)].read_text(encoding="utf-8") for arm in ARMS}
    files = {arm: zlib.crc32(json.dumps(yaml.safe_load(text)).encode()) for arm, text in texts.items()}
    plan = {name: getattr(made, name) for name in _PLAN}
    return {"examples": files, "worlds": [dict(w) for w in made.worlds], **plan}


def _example(task: str, arm: str) -> str:
    return f"{task}_{'ppo' if arm == 'rl' else 'sft'}"


def play(one: Run, folder: Path, rows: Mapping[Run, Mapping[str, Any]]) -> dict[str, Any]:
    """A run: its points, each with CPU-seconds and tokens learnt since the start, updates, and the tests' totals."""
    made = COMPARISONS[one.task]
    digest = zlib.crc32(json.dumps(settings(one.task)).encode())
    start = folder / f"{one.task}-{one.start}-{one.seed}-{digest:08x}"
    say = partial(Console(stderr=True).print, highlight=False)
    if not start.is_dir():
        _teach(one, start, say)
    config = _config(one, _example(one.task, one.arm), start)
    algorithm = config.build_algo()
    testers = _testers(algorithm, made)
    points: list[dict[str, Any]] = []
    cpu_s, tokens, updates = 0.0, 0.0, 0
    try:
        while True:
            tests = {name: test() for name, test in testers.items()}
            points.append(
                {"updates": updates, "cpu_s": round(cpu_s, 1), "tokens": int(tokens), "tests": tests}
            )
            say(f"{one}: {points[-1]['cpu_s']} s, " + ", ".join(_in_short(n, t) for n, t in tests.items()))
            if len(points) > made.points:
                return {"points": points, "taught": json.loads((start / _START_FILE).read_text())}
            enough = _enough(one, made, len(points), rows)
            while not enough(updates, cpu_s):
                begun = time.process_time()
                result = algorithm.train()
                cpu_s += time.process_time() - begun
                tokens = look_up(result, _TOKENS) or tokens
                updates += 1
    finally:
        for test in testers.values():
            test.close()
        algorithm.stop()


_START_FILE = "study.json"


def _enough(
    one: Run, made: Comparison, point: int, rows: Mapping[Run, Mapping[str, Any]]
) -> Callable[[int, float], bool]:
    """Whether so many updates and CPU-seconds bring a run to its next test."""
    if one.arm == "rl":
        return lambda updates, cpu_s: updates >= made.every * point
    budget = rows[replace(one, arm="rl")]["points"][point]["cpu_s"]
    return lambda updates, cpu_s: cpu_s >= budget


def _in_short(name: str, test: Mapping[str, Any]) -> str:
    return f"{name} {test['success']['rate']:.2f} (steps {test['step_accuracy']['rate']:.2f})"


def _config(one: Run, example: str, start: Path | None) -> Any:
    """An example's, in this process, with the start's weights in place of random ones and no warm start before RL."""
    overrides = (*_SETTINGS, f"rl_module.model_config.seed={one.seed}")
    experiment = load(examples()[example], overrides=overrides)[0]
    register(experiment)
    config = experiment.config.copy(copy_frozen=False).callbacks([]).debugging(seed=one.seed)
    if start is not None:
        family = config.model_config["family"]
        config.rl_module(model_config={"family": family, "checkpoint": str(start)})
        if one.arm == "rl":
            config.warm_start(updates=0)
        else:  # until it has had as much as the other
            rate = load(examples()[_example(one.task, "rl")])[0].config.lr
            config.warm_start(updates=1_000_000, lr=rate, lr_schedule="constant")
    return config


def _teach(one: Run, start: Path, say: Callable[..., object]) -> None:
    """Writes the policy that both arms begin with."""
    made = COMPARISONS[one.task]
    worlds = made.worlds if one.start == "broad" else made.worlds[:1]
    config = _config(one, _example(one.task, "sft"), None).warm_start(updates=made.start_updates)
    with tempfile.TemporaryDirectory() as scratch:
        if made.demonstrations:
            file = Path(scratch) / "demonstrations.json"
            items = [item for i, world in enumerate(worlds) for item in _written(made, config, world, i)]
            write_text(file, json.dumps(items))
            config.warm_start(demonstrations=str(file), buffer_episodes=0)
        else:
            config.env_config = {**config.env_config, **worlds[-1]}
        algorithm = config.build_algo()
        begun, tokens = time.process_time(), 0.0
        try:
            while algorithm.run_state.phase == "warm_start":
                tokens = look_up(algorithm.train(), _TOKENS) or tokens
            spent = time.process_time() - begun
            algorithm.save_to_path(str(Path(scratch) / "checkpoint"))
        finally:
            algorithm.stop()
        with new_folder(start) as temporary:
            export(Path(scratch) / "checkpoint", temporary, overwrite=True)
            write_text(temporary / _START_FILE, json.dumps({"cpu_s": round(spent, 1), "tokens": int(tokens)}))
    say(f"{one.task}, start {one.start}, seed {one.seed}: {spent:.0f} s")


def _written(made: Comparison, config: Any, world: Mapping[str, Any], number: int) -> list[Any]:
    """The expert's conversations in a world."""
    simulator = registry.resolve("simulators", made.simulator)
    prompting = {
        k: config.prompting_settings[k] for k in ("parser", "parser_options", "template", "observation")
    }
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "world.json"
        write_conversations(
            partial(simulator, **{**config.env_config, **world}), file, prompting, episodes=made.demonstrations,
            seed=number * made.demonstrations,
        )  # fmt: skip
        items: list[Any] = json.loads(file.read_text(encoding="utf-8"))
    return items


class _Tester:
    """A part of a suite, played by the learner's own weights."""

    def __init__(self, runner: Any, split: str, episodes: int, *, owned: bool) -> None:
        self._runner, self._split, self._episodes, self._owned = runner, split, episodes, owned

    def __call__(self) -> dict[str, Any]:
        tasks = [Task("heldout", seed) for seed in range(self._episodes)]
        played = self._runner.play_transcripts(tasks, {"split": self._split})
        if played.error is not None:
            raise played.error
        found = totals(played.items)
        return {name: found[name] for name in ("success", "step_accuracy", "reward", "rates")}

    def close(self) -> None:
        if self._owned:
            self._runner.stop()


def _testers(algorithm: Any, made: Comparison) -> dict[str, _Tester]:
    """What plays each part; those in the training world share the run's own runner."""
    module = algorithm.learner_group._learner.module["default_policy"]  # noqa: SLF001
    found = {}
    for part in made.parts:
        runner, owned = algorithm.env_runner_group.local_env_runner, bool(part.env_config)
        if owned:
            config = algorithm.config.copy(copy_frozen=False)
            config.env_config = {**config.env_config, **part.env_config}
            runner = VLMEnvRunner(config=config, worker_index=0, num_workers=0)
            runner.share_module(module)
        found[part.name] = _Tester(runner, part.split, made.episodes, owned=owned)
    return found
