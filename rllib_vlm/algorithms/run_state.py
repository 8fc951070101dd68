"""How far a run has come: what a checkpoint keeps beside weights and optimizer."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rllib_vlm.algorithms.vlm_config import VLMAlgorithmConfig

Phase = Literal["warm_start", "rl", "finished"]
Milestone = Literal["start", "warm_start_end", "final"]


@dataclass(slots=True)
class RunState:
    """Counters of the run; phases follow each other `warm_start` -> `rl` -> `finished`."""

    phase: Phase = "warm_start"
    warm_start_updates: int = 0
    updates: int = 0  # of reinforcement learning
    warm_start_s: float = 0.0  # training time of the phase, evaluation left out
    rl_s: float = 0.0
    task_cursor: int = 0  # training tasks drawn so far
    # Of those, begun and not learnt from yet, by their places in the sequence.
    open_tasks: list[int] = field(default_factory=list)
    demonstration_cursor: int = 0  # recorded demonstrations read so far
    level: float | None = None  # of the curriculum
    kl_coeff: float | None = None  # where `kl_target` has moved it; None is the configured one
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)  # by milestone
    rollbacks: int = 0  # made so far
    lr_scale: float = 1.0  # of the learning rates of reinforcement learning, lowered by rollbacks
    clip_scale: float = 1.0  # of the clip range, likewise
    notes: dict[str, Any] = field(default_factory=dict)  # of callbacks, by their name; JSON

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunState:
        return cls(**values)

    def advance(self, config: VLMAlgorithmConfig) -> None:
        """Moves to the next phase where the present one is complete."""
        if self.phase == "warm_start" and _complete(
            self.warm_start_updates,
            config.warm_start_updates,
            self.warm_start_s,
            config.warm_start_time_budget_s,
        ):
            self.phase = "rl"
        if self.phase == "rl" and _complete(
            self.updates, config.total_updates, self.rl_s, config.time_budget_s
        ):
            self.phase = "finished"

    def spent(self, config: VLMAlgorithmConfig) -> float:
        """Of the present phase's time budget; 0 without one."""
        seconds, budget = (
            (self.warm_start_s, config.warm_start_time_budget_s)
            if self.phase == "warm_start"
            else (self.rl_s, config.time_budget_s)
        )
        return 0.0 if budget is None else seconds / budget

    def reopen(self, config: VLMAlgorithmConfig) -> None:
        """A run that was finished goes on where it may be longer now: its end is still to come, and to be evaluated."""
        if self.phase != "finished":
            return
        self.phase = "rl"
        self.advance(config)
        if self.phase == "rl":
            self.evaluations.pop("final", None)

    def back_to(self, earlier: RunState, *, lr_factor: float, clip_factor: float) -> RunState:
        """The state of a run that goes back to `earlier` from here, to go on more carefully.

        What it has used up stays used: its time, its tasks, its evaluations. Only its end is still to come.
        """
        return replace(
            earlier,
            warm_start_s=self.warm_start_s,
            rl_s=self.rl_s,
            task_cursor=max(self.task_cursor, earlier.task_cursor),
            open_tasks=self.open_tasks,
            demonstration_cursor=max(self.demonstration_cursor, earlier.demonstration_cursor),
            evaluations={at: record for at, record in self.evaluations.items() if at != "final"},
            rollbacks=self.rollbacks + 1,
            lr_scale=self.lr_scale * lr_factor,
            clip_scale=self.clip_scale * clip_factor,
            notes=self.notes,
        )

    def milestones(self, config: VLMAlgorithmConfig) -> list[Milestone]:
        """Where the run stands that evaluations are named after, the latest first."""
        reached: list[Milestone] = []
        if self.phase == "finished":
            reached.append("final")
        if self.phase != "warm_start" and self.updates == 0:
            reached.append("warm_start_end")
        if self.warm_start_updates == 0 and self.updates == 0:
            reached.append("start")
        return reached

    def adapt_kl(self, kl: float, config: VLMAlgorithmConfig) -> None:
        """Doubles the KL term's coefficient well above the target, halves it well below.

        Args:
            kl: to the reference, nats a token, of the last update.
            config: with `kl_target`; without one nothing changes.

        Source: the adaptive penalty of PPO (arXiv 1707.06347, section 4), to the reference in place of the last policy.
        """
        if config.kl_target is None:
            return
        coefficient = config.kl_coeff if self.kl_coeff is None else self.kl_coeff
        if kl > 1.5 * config.kl_target:
            coefficient *= 2.0
        elif kl < config.kl_target / 1.5:
            coefficient *= 0.5
        self.kl_coeff = coefficient

    def learn_from(self, success_rate: float, config: VLMAlgorithmConfig) -> None:
        """Moves the curriculum's level, by this update's success rate or by the number of updates."""
        plan = config.curriculum
        if plan is None:
            return
        start, end = float(plan.get("start", 0.0)), float(plan.get("end", 1.0))
        if "updates" in plan:
            share = min(1.0, self.updates / max(1, plan["updates"]))
            self.level = start + (end - start) * share
        elif success_rate >= plan["threshold"]:
            level = start if self.level is None else self.level
            self.level = min(end, level + float(plan.get("step", 0.1)))


def _complete(done: int, total: int | None, seconds: float, budget: float | None) -> bool:
    return (total is not None and done >= total) or (budget is not None and seconds >= budget)
