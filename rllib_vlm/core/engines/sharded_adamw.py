"""AdamW whose parameters lie in parts of flat tensors, one optimizer state a parameter as if they did not.

ZeRO hands an optimizer flat tensors, of which each learner has its part. To AdamW such a tensor would be one
parameter: one count of steps for all, and moments and decay for parameters that a step never touched (a value head
while demonstrations are imitated, the policy while its critic warms up). Here every parameter has its own count, and
those without a gradient stay as they are, as with torch's own; numbers are torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.adamw import adamw

from rllib_vlm.errors import CheckpointError

MOMENTS = ("exp_avg", "exp_avg_sq")
MASTER = "master"  # the float32 weights behind weights of fewer bits


@dataclass(frozen=True, slots=True)
class Fragment:
    """What this learner holds of one parameter: `size` elements of `flat` from `start` on, those from `offset` on."""

    name: str
    flat: Tensor  # float32
    start: int
    offset: int  # among the elements of the parameter
    size: int

    def of(self, flat: Tensor) -> Tensor:
        """[size] of a tensor laid out as `flat`."""
        return flat.view(-1).narrow(0, self.start, self.size)


class ShardedAdamW(torch.optim.AdamW):
    """Groups are those of `build_optimizers`, with `names` of their parameters."""

    def __init__(self, groups: Iterable[dict[str, Any]], **defaults: Any) -> None:
        super().__init__(groups, **defaults)
        self.names: list[list[str]] = [group.pop("names") for group in self.param_groups]
        self._shapes = {
            name: tuple(p.shape)
            for names, group in zip(self.names, self.param_groups, strict=True)
            for name, p in zip(names, group["params"], strict=True)
        }
        self._template = [
            {k: v for k, v in group.items() if k not in ("params", "lr")} for group in self.param_groups
        ]
        self._fragments: dict[Tensor, list[Fragment]] = {}
        self._sharded = False
        self._steps: dict[str, int] = dict.fromkeys(self._shapes, 0)
        self._touched: set[str] = set()
        self._allowed: Callable[[], bool] = bool
        self.verdict: bool | None = None  # of the present step

    def lay_out(self, fragments: Sequence[Fragment], *, sharded: bool) -> None:
        """Says where parameters lie, and makes room for their moments; not `sharded`: every learner has all of them."""
        self._fragments, self._sharded = {}, sharded
        for fragment in fragments:
            self._fragments.setdefault(fragment.flat, []).append(fragment)
        for flat in self._fragments:
            for moment in MOMENTS:
                self.state[flat][moment] = torch.zeros_like(flat, memory_format=torch.preserve_format)

    def begin(self, touched: set[str], allowed: Callable[[], bool]) -> None:
        """Before a step: which parameters have gradients, and who says whether it is taken, asked once."""
        self._touched, self._allowed, self.verdict = touched, allowed, None
        # Counted once a step, which ZeRO takes flat tensor by flat tensor.
        self._counted: set[str] = set()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Of the flat tensors that stand in `param_groups` just now."""
        if self.verdict is None:
            self.verdict = self._allowed()
        if not self.verdict:
            return
        for name in self._touched - self._counted:
            self._steps[name] += 1
        self._counted |= self._touched
        for group in self.param_groups:
            for flat in group["params"]:
                self._step_flat(flat, group)

    def _step_flat(self, flat: Tensor, group: dict[str, Any]) -> None:
        mine = [f for f in self._fragments.get(flat, ()) if f.name in self._touched and f.size]
        if not mine or flat.grad is None:
            return
        state = self.state[flat]
        adamw(
            [f.of(flat) for f in mine],
            [f.of(flat.grad) for f in mine],
            [f.of(state["exp_avg"]) for f in mine],
            [f.of(state["exp_avg_sq"]) for f in mine],
            [],
            [torch.tensor(float(self._steps[f.name])) - 1.0 for f in mine],  # it adds one
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    # The state of all learners together, and back.

    def gather(self, what: str, device: torch.device, *, keep: bool = True) -> dict[str, Tensor]:
        """Whole float32 tensors by the parameters' names, on the CPU: a moment, or `MASTER`. All learners take part.

        Args:
            what: is gathered.
            device: that learners talk from.
            keep: whether this learner wants them; the others get nothing.
        """
        mine = {f.name: f for fragments in self._fragments.values() for f in fragments}
        found = {}
        for name, shape in self._shapes.items():
            whole = torch.zeros(shape, dtype=torch.float32, device=device)
            if name in mine and mine[name].size:
                f = mine[name]
                source = f.flat if what == MASTER else self.state[f.flat][what]
                whole.view(-1).narrow(0, f.offset, f.size).copy_(f.of(source))
            if self._sharded:
                dist.all_reduce(whole)
            if keep:
                found[name] = whole.cpu()
        return found

    def scatter(self, what: str, whole: Mapping[str, Tensor]) -> None:
        """Takes this learner's parts of whole tensors by name; those that are not named stay as they are."""
        for flat, fragments in self._fragments.items():
            target = flat if what == MASTER else self.state[flat][what]
            for f in fragments:
                if f.name in whole and f.size:
                    f.of(target.data).copy_(whole[f.name].reshape(-1).narrow(0, f.offset, f.size))

    def whole_state(self, device: torch.device, *, masters: bool, keep: bool) -> dict[str, Any] | None:
        """As `torch.optim.AdamW.state_dict` of parameters in one piece. All learners take part.

        Args:
            device: that learners talk from.
            masters: also the float32 weights, where the model's are of fewer bits.
            keep: whether this learner wants it; the others get nothing.
        """
        wanted = (*MOMENTS, MASTER) if masters else MOMENTS
        parts = {what: self.gather(what, device, keep=keep) for what in wanted}
        if not keep:
            return None
        state: dict[int, dict[str, Tensor]] = {}
        groups: list[dict[str, Any]] = []
        for names, template, own in zip(self.names, self._template, self.param_groups, strict=True):
            start = sum(len(group["params"]) for group in groups)
            groups.append({**template, "lr": own["lr"], "params": list(range(start, start + len(names)))})
            for i, name in enumerate(names, start):
                taken = {k: v[name] for k, v in parts.items() if k == MASTER or self._steps[name]}
                if self._steps[name]:
                    taken["step"] = torch.tensor(float(self._steps[name]))
                if taken:
                    state[i] = taken
        return {"state": state, "param_groups": groups}

    def load_whole_state(self, saved: Mapping[str, Any]) -> None:
        """Takes this learner's parts of what `whole_state`, or a plain AdamW over the same parameters, gave.

        Raises:
            CheckpointError: it is of other parameters.
        """
        names = [name for group in self.names for name in group]
        sizes = [len(group["params"]) for group in saved["param_groups"]]
        if sizes != [len(group) for group in self.names]:
            raise CheckpointError(
                f"the optimizer's state is of groups of {sizes} parameters, here they are of "
                f"{[len(group) for group in self.names]}: another model, other frozen parts or another optimizer_type. "
                "Resume with the settings that the run had."
            )
        of = {names[int(i)]: state for i, state in saved["state"].items()}
        for name in names:
            self._steps[name] = int(of.get(name, {}).get("step", 0))
        for what in (*MOMENTS, MASTER):
            self.scatter(what, {name: torch.as_tensor(s[what]) for name, s in of.items() if what in s})
        for moment in MOMENTS:
            absent = [n for n in names if moment not in of.get(n, {})]
            self.scatter(moment, {n: torch.zeros(self._shapes[n]) for n in absent})

    def snapshot(self) -> Any:
        """This learner's parts as they are now."""
        flats = [
            (flat, flat.detach().clone(), {m: self.state[flat][m].clone() for m in MOMENTS})
            for flat in self._fragments
        ]
        return flats, dict(self._steps)

    def go_back(self, snapshot: Any) -> None:
        """To a snapshot."""
        flats, steps = snapshot
        for flat, weights, moments in flats:
            flat.data.copy_(weights)
            for moment, value in moments.items():
                self.state[flat][moment].copy_(value)
        self._steps = dict(steps)
