"""What one trial asks of a cluster: its processes by role, and the bundles that reserve all of them.

A bundle is a set of resources on one node. RLlib looks for the driver in the first and for its env runners, then the
evaluation's, in the next ones by their index; its learners take what is left of the reservation. Engines of a backend
stand between, so that learners need no index::

    separate      [driver] [runner] [runner] [engine] [engine] [learner] [learner]
    shared        [driver] [runner] [runner] [engine + learner] [engine + learner]
    shared        [driver] [runner + learner] [runner + learner]        where no engine samples, but the runners
    hybrid        as shared, and who rests leaves the GPU: `algorithms.placed`

One bundle for two means one node for both, and one GPU, since their fractions of it are reserved together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal, get_args

from ray.rllib.algorithms.utils import (
    _get_env_runner_bundles,
    _get_learner_bundles,
    _get_main_process_bundle,
)
from ray.tune import PlacementGroupFactory

from rllib_vlm.errors import did_you_mean

if TYPE_CHECKING:
    from rllib_vlm.algorithms.vlm_config import VLMAlgorithmConfig

Placement = Literal["separate", "shared", "hybrid"]
Strategy = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]

DRIVER, ENV_RUNNERS, EVALUATION, ENGINES, LEARNERS = (
    "driver", "env runners", "evaluation runners", "engines", "learners",
)  # fmt: skip
_SETTINGS = {
    DRIVER: ("resources.num_cpus_for_main_process",),
    ENV_RUNNERS: (
        "env_runners.num_env_runners",
        "env_runners.num_cpus_per_env_runner",
        "env_runners.num_gpus_per_env_runner",
    ),
    EVALUATION: (
        "evaluation.evaluation_num_env_runners",
        "env_runners.num_cpus_per_env_runner",
        "env_runners.num_gpus_per_env_runner",
    ),
    ENGINES: ("generation.engine.count", "generation.engine.num_cpus", "generation.engine.num_gpus"),
    LEARNERS: (
        "learners.num_learners",
        "learners.num_cpus_per_learner",
        "learners.num_gpus_per_learner",
    ),
}


@dataclass(frozen=True, slots=True)
class Role:
    """Processes of one kind: how many, what each asks for (names of Ray's resources), the settings that lower it."""

    name: str
    count: int
    each: Mapping[str, float]
    settings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bundle:
    """What is reserved on one node, for a process of each of `roles`."""

    roles: tuple[str, ...]
    resources: Mapping[str, float]

    def __str__(self) -> str:
        what = ", ".join(f"{amount:g} {name}" for name, amount in self.resources.items() if amount)
        return f"{' with '.join(role.removesuffix('s') for role in self.roles)} ({what})"


@dataclass(frozen=True, slots=True)
class Demand:
    """All that a trial reserves, for as long as it runs.

    Attributes:
        roles: in the order of their bundles; those without a process are left out.
        bundles: the reservation.
        strategy: Ray's, for bundles and nodes: "PACK" as few nodes as can be, "SPREAD" as many; "STRICT_..." or
            not at all.
    """

    roles: tuple[Role, ...]
    bundles: tuple[Bundle, ...]
    strategy: str = "PACK"

    @property
    def total(self) -> dict[str, float]:
        """Amounts by resource, CPUs and GPUs first."""
        total: Counter[str] = Counter()
        for bundle in self.bundles:
            total.update(bundle.resources)
        names = sorted(total, key=lambda name: (name != "CPU", name != "GPU", name))
        return {name: total[name] for name in names if total[name]}

    def first_bundle(self, role: str) -> int:
        """Where the bundles of a role begin; the i-th process of a role other than learners is so many further."""
        names = [r.name for r in self.roles]
        return sum(r.count for r in self.roles[: names.index(role)])

    def request(self) -> PlacementGroupFactory:
        """The same for Tune, which starts the trial once all of it is reserved."""
        return PlacementGroupFactory([dict(b.resources) for b in self.bundles], strategy=self.strategy)

    def without_driver(self) -> Demand:
        """Of a program that is its own driver: what it starts beside itself."""
        return Demand(
            roles=tuple(r for r in self.roles if r.name != DRIVER),
            bundles=tuple(b for b in self.bundles if DRIVER not in b.roles),
            strategy=self.strategy,
        )

    @classmethod
    def of_request(cls, request: PlacementGroupFactory) -> Demand:
        """Of an algorithm that says no more than what it reserves."""
        first = () if request.head_bundle_is_empty else (DRIVER,)
        names = [*first, *(["workers"] * (len(request.bundles) - len(first)))]
        roles: dict[tuple[str, tuple[tuple[str, float], ...]], int] = Counter(
            (name, tuple(sorted(bundle.items()))) for name, bundle in zip(names, request.bundles, strict=True)
        )
        return cls(
            roles=tuple(Role(name, count, dict(each)) for (name, each), count in roles.items()),
            bundles=tuple(Bundle((n,), b) for n, b in zip(names, request.bundles, strict=True)),
            strategy=request.strategy,
        )


def demand_of(config: VLMAlgorithmConfig, evaluation: VLMAlgorithmConfig | None = None) -> Demand:
    """What a trial with this configuration reserves.

    Args:
        config: of training.
        evaluation: of evaluation runners of their own; None where training runners evaluate.
    """
    runners = _get_env_runner_bundles(config)
    engines = config.engine_bundles
    by_role = {
        DRIVER: [_get_main_process_bundle(config)],
        ENV_RUNNERS: runners,
        EVALUATION: [] if evaluation is None else _get_env_runner_bundles(evaluation),
        ENGINES: engines,
        LEARNERS: _get_learner_bundles(config),
    }
    roles = tuple(
        Role(name, len(each), each[0], _SETTINGS[name] + (_SETTINGS[LEARNERS] if local else ()))
        for name, each in by_role.items()
        if each
        for local in [name == DRIVER and config.num_learners == 0 and config.num_gpus_per_learner > 0]
    )
    shares = (ENGINES if engines else ENV_RUNNERS) if config.placement != "separate" else None
    learners = by_role[LEARNERS]
    bundles: list[Bundle] = []
    for name, own in by_role.items():
        if name == shares:
            bundles += _pairs(name, own, learners)
            learners = learners[len(own) :]
        else:
            bundles += [Bundle((name,), each) for each in (learners if name == LEARNERS else own)]
    return Demand(roles=roles, bundles=tuple(bundles), strategy=config.placement_strategy)


def _pairs(
    sampler: str, samplers: Sequence[Mapping[str, float]], learners: Sequence[Mapping[str, float]]
) -> Iterator[Bundle]:
    """A bundle for each sampler, the first ones with a learner beside it."""
    for own, beside in zip_longest(samplers, learners[: len(samplers)]):
        if beside is None:
            yield Bundle((sampler,), own)
        else:
            together = Counter(own)
            together.update(beside)
            yield Bundle((sampler, LEARNERS), dict(together))


def problems(c: VLMAlgorithmConfig) -> Iterator[str]:
    """What is wrong with a placement whatever the cluster; each message begins with the setting it is about."""
    for name, value, known in (
        ("placement", c.placement, get_args(Placement)),
        ("placement_strategy", c.placement_strategy, get_args(Strategy)),
    ):
        if value not in known:
            yield f"{name} is {value!r}.{did_you_mean(str(value), known)} Known: {', '.join(known)}"
            return
    samplers = c.engine_bundles
    what, setting = "engine", "generation.engine.num_gpus"
    if not samplers:
        samplers, what, setting = _get_env_runner_bundles(c), "env runner", "num_gpus_per_env_runner"
    together = f"placement {c.placement!r} puts an {what} and a learner on one GPU"
    if c.placement != "separate" and not c.num_learners:
        yield f"{together}, but num_learners is 0: the driver learns; set learners.num_learners to 1 or more"
    elif c.placement != "separate" and not samplers:
        yield f"{together}, but num_env_runners is 0: the driver samples; set it to 1 or more"
    elif samplers and c.num_learners:
        sampler, learner = float(samplers[0].get("GPU", 0)), float(c.num_gpus_per_learner)
        asked = f"{setting} {sampler:g} and num_gpus_per_learner {learner:g}"
        wrong = _apart if c.placement == "separate" else _together
        # Runners have the GPU of their bundle, and come first. Learners take any that the trial has left, and engines
        # come after them: where two learners fit on a GPU, an engine may be left without its own.
        yield from (
            f"placement is {c.placement!r}, but {asked} {w}"
            for w in wrong(sampler, learner, what == "engine")
        )


def _apart(sampler: float, learner: float, engines: bool) -> Iterator[str]:
    if sampler and 0 < learner < 1 and (engines or (sampler < 1 and sampler + learner <= 1)):
        yield "leave it to chance who meets on a GPU: give learners whole ones, or take 'shared' or 'hybrid'"


def _together(sampler: float, learner: float, engines: bool) -> Iterator[str]:
    if bool(sampler) != bool(learner):
        yield "say that only one of them uses it: take 'separate'"
    elif sampler + learner > 1:
        yield f"make {sampler + learner:g}: lower them until they are at most 1"
    elif engines and 0 < learner <= 0.5:
        yield "let two learners meet on one GPU: give a learner more than half"
