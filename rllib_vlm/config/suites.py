"""`rllib evaluate CHECKPOINT --suite NAME`: several tests of one policy in one command.

A suite is data (`sims.suite`); which ones there are, the registry's table `suites` says. Each part is a split of the
simulator, perhaps with other arguments. Parts with the same arguments are played by one restored algorithm, all
simulators at once.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import ray

from rllib_vlm import registry
from rllib_vlm.algorithms.validation import check_simulator
from rllib_vlm.config import evaluation
from rllib_vlm.config.evaluation import Evaluation
from rllib_vlm.config.sections import sections
from rllib_vlm.env.creators import simulator_factory
from rllib_vlm.env.tasks import Task
from rllib_vlm.env.transcript import Transcript
from rllib_vlm.errors import ConfigErrors, RLlibVLMError, UnknownNameError
from rllib_vlm.sims.suite import Part, Suite

_POLL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPart:
    """A part as it will be played."""

    part: Part
    episodes: int
    env_config: dict[str, Any]

    @property
    def tasks(self) -> list[Task]:
        first = self.part.first_seed
        return [Task("heldout", seed) for seed in range(first, first + self.episodes)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSuite:
    """A suite that fits a checkpoint that was found to be whole."""

    name: str
    evaluation: Evaluation
    parts: tuple[PlannedPart, ...]
    left_out: Mapping[str, str]  # parts that do not apply, and why

    def play(
        self, advance: Callable[[PlannedPart, int], object]
    ) -> Iterator[tuple[PlannedPart, int, list[Transcript]]]:
        """Each part, the policy's updates and its episodes in the order of their seeds; Ray must be up.

        `advance` is told of every so many episodes that are over, and of all of them when it is.
        """
        for env_config, parts in groupby(self.parts, key=lambda planned: planned.env_config):
            algorithm = replace(self.evaluation, config=self._config(env_config)).restore()
            try:
                group = algorithm.eval_env_runner_group or algorithm.env_runner_group
                remote = bool(group.num_remote_env_runners())
                for planned in parts:
                    heard = _Tally(partial(advance, planned))
                    with _heard(heard.add, remote=remote) as tell:
                        options = {"split": planned.part.split}
                        told = algorithm.transcribe(planned.tasks, options, tell)
                    # A runner's last words may still be on their way.
                    heard.add(planned.episodes - heard.count)
                    yield planned, algorithm.run_state.updates, told
            finally:
                algorithm.stop()

    def conditions(self, planned: PlannedPart) -> dict[str, Any]:
        """What a part is played by: tasks, simulator, prompts and decoding."""
        config = self._config(planned.env_config).get_evaluation_config_object()
        return {
            "checkpoint": str(self.evaluation.folder),
            "suite": self.name,
            "part": planned.part.name,
            "split": planned.part.split,
            "seeds": [planned.part.first_seed, planned.part.first_seed + planned.episodes - 1],
            "env": str(config.env),
            "env_config": planned.env_config,
            "decoding": {
                "backend": config.backend,
                "temperature": config.temperature,
                "top_p": config.top_p,
                "max_new_tokens": config.max_new_tokens,
                "stop": list(config.stop),
                "seed": config.seed,
            },
            "prompting": config.prompting_settings,
            "max_turns": config.max_turns,
        }

    def _config(self, env_config: Mapping[str, Any]) -> Any:
        """The algorithm's, with simulators of these arguments wherever they evaluate."""
        config = self.evaluation.config.copy(copy_frozen=False)
        # RLlib's builder methods would lay these over the old ones.
        config.env_config = dict(env_config)
        changes = config.evaluation_config or {}
        config.evaluation_config = {key: value for key, value in changes.items() if key != "env_config"}
        return config


def prepare(
    checkpoint: Path,
    name: str,
    *,
    parts: Sequence[str] = (),
    episodes: int | None = None,
    overrides: Sequence[str] = (),
) -> PlannedSuite:
    """What `PlannedSuite.play` then does; needs no Ray.

    The first task of each part is begun once, to see that it can be.

    Args:
        checkpoint: its folder.
        name: of the suite.
        parts: those to play; by default all that apply.
        episodes: of each part, in place of the suite's own numbers.
        overrides: of the configuration, as `--set` takes them.

    Raises:
        UnknownNameError: no such suite, or no such part of it.
        RLlibVLMError: the suite is for another simulator.
        ConfigErrors: an override the algorithm's config does not take, or parts that cannot be played.
        CheckpointError: the checkpoint is not as it was written.
    """
    suite = _suite(name)
    known = [part.name for part in suite.parts]
    for asked in parts:
        if asked not in known:
            raise UnknownNameError(f"parts of the suite {name!r}", asked, known)
    found = evaluation.prepare(checkpoint, overrides=overrides)
    _check_fit(found, name, suite)
    own = {**found.config.env_config, **(found.config.evaluation_config or {}).get("env_config", {})}
    planned: list[PlannedPart] = []
    left_out: dict[str, str] = {}
    for part in suite.parts:
        if parts and part.name not in parts:
            continue
        reason = _inapplicable(part, found.config.env, own)
        if reason is not None:
            left_out[part.name] = reason
            continue
        planned.append(
            PlannedPart(part=part, episodes=episodes or part.episodes, env_config={**own, **part.env_config})
        )
    if not planned:
        raise RLlibVLMError(f"--suite {name}: nothing is left to play ({'; '.join(left_out.values())})")
    problems = [problem for each in planned for problem in _problems(found.config, each)]
    if problems:
        raise ConfigErrors(f"suite {name}", problems)
    return PlannedSuite(name=name, evaluation=found, parts=tuple(planned), left_out=left_out)


def _suite(name: str) -> Suite:
    suite = registry.resolve("suites", name)
    if not isinstance(suite, Suite):
        raise RLlibVLMError(f"--suite {name} is {suite!r}, not a rllib_vlm.sims.suite.Suite")
    return suite


def _check_fit(found: Evaluation, name: str, suite: Suite) -> None:
    env = found.config.env
    if "simulation" in sections(type(found.config)):
        if _is_of(env, suite.simulator):
            return
        fitting = [n for n in registry.names("suites") if _is_of(env, _suite(n).simulator)]
    else:
        fitting = []
    raise RLlibVLMError(
        f"--suite {name} is for policies of the simulator {suite.simulator!r}, and {found.folder} is one of "
        f"{env if isinstance(env, str) else getattr(env, '__name__', env)!r}. "
        f"Suites for that: {', '.join(fitting) or '(none)'}."
    )


def _is_of(env: Any, simulator: str) -> bool:
    """Whether an `env` of a configuration is that simulator, by whatever name, or a kind of it."""
    own, theirs = _resolved(env), _resolved(simulator)
    return own is theirs or (inspect.isclass(own) and inspect.isclass(theirs) and issubclass(own, theirs))


def _resolved(env: Any) -> Any:
    if isinstance(env, str) and (env in registry.names("simulators") or ":" in env):
        return registry.resolve("simulators", env)
    return env


def _inapplicable(part: Part, env: Any, env_config: Mapping[str, Any]) -> str | None:
    """Why a part is not for simulators of these arguments; None if it is."""
    defaults = inspect.signature(_resolved(env)).parameters
    for name, values in part.only_with.items():
        value = env_config.get(name, defaults[name].default if name in defaults else None)
        if value not in values:
            return f"{part.name} is for {name} {' or '.join(map(str, values))}, and this is {value}"
    return None


def _problems(config: Any, planned: PlannedPart) -> Iterator[str]:
    part = planned.part
    wrong = [f"{part.name}: {problem}" for problem in check_simulator(config.env, planned.env_config)]
    yield from wrong
    if wrong:
        return
    options = {**config.reset_options, "split": part.split}
    try:
        with closing(simulator_factory(config.env, planned.env_config)()) as simulator:
            simulator.reset(seed=part.first_seed, options=options)
    except RLlibVLMError as error:
        yield f"{part.name}: {error}"


@dataclass(slots=True)
class _Tally:
    """Passes numbers on, and adds them up."""

    tell: Callable[[int], object]
    count: int = 0

    def add(self, number: int) -> None:
        self.count += number
        self.tell(number)


class _Counter:
    """Of episodes that are over, for runners in other processes."""

    def __init__(self) -> None:
        self._count = 0

    def add(self) -> None:
        self._count += 1

    def count(self) -> int:
        return self._count


@dataclass(frozen=True, slots=True)
class _TellCounter:
    counter: Any

    def __call__(self) -> None:
        self.counter.add.remote()


@contextmanager
def _heard(advance: Callable[[int], object], *, remote: bool) -> Iterator[Callable[[], object]]:
    """What a runner calls after each episode, wherever it is, so that `advance` is called here with how many."""
    if not remote:
        yield lambda: advance(1)
        return
    counter = ray.remote(num_cpus=0)(_Counter).remote()
    over = threading.Event()

    def listen() -> None:
        seen, last = 0, False
        while not last:
            last = over.wait(_POLL_S)
            count = ray.get(counter.count.remote())
            advance(count - seen)
            seen = count

    listener = threading.Thread(target=listen, name="suite-progress", daemon=True)
    listener.start()
    try:
        yield _TellCounter(counter)
    finally:
        over.set()
        listener.join()
        ray.kill(counter)
