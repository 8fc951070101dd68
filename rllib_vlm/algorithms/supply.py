"""Whether a cluster can ever hold what a trial asks for, and the table that shows why not."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.autoscaler.sdk import request_resources
from rich.console import Console
from rich.table import Table

from rllib_vlm.algorithms.placement import Demand
from rllib_vlm.errors import PlacementError

_UNIT = 10_000  # Ray counts resources in ten-thousandths
_PATIENCE_S = 5.0  # of the search for a packing; a demand it has not refuted by then is let through
_POLL_S = 2.0
_MOST_ROWS = 8


@dataclass(frozen=True, slots=True)
class Supply:
    """The resources of each node that is up, and of all of them together what nobody has reserved."""

    nodes: tuple[Mapping[str, float], ...]
    free: Mapping[str, float]

    @classmethod
    def of_cluster(cls) -> Supply:
        """Of the cluster this process has joined."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return cls(nodes=tuple(nodes), free=ray.available_resources())

    def total(self, resource: str) -> float:
        return sum(node.get(resource, 0.0) for node in self.nodes)


def ensure(demand: Demand, *, wait_s: float = 0.0, tell: Callable[[str], object] = print) -> None:
    """Returns where the cluster can hold `demand`, be it in use by others at the moment.

    Args:
        demand: what is to be reserved.
        wait_s: seconds in which nodes may still join; an autoscaler is told what is asked for.
        tell: is given the sentence that says what is waited for.

    Raises:
        PlacementError: it cannot; demand and supply side by side, and the way out.
    """
    reasons = shortcomings(demand, Supply.of_cluster())
    if not reasons:
        return
    deadline = time.monotonic() + wait_s
    if wait_s:
        tell(f"waiting {wait_s:g} s at most for nodes: {'; '.join(reasons)}")
        request_resources(bundles=[dict(bundle.resources) for bundle in demand.bundles])
    try:
        while reasons and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            reasons = shortcomings(demand, Supply.of_cluster())
    finally:
        if wait_s:
            request_resources(num_cpus=0)  # what stays is what runs
    if reasons:
        raise PlacementError(explain(demand, Supply.of_cluster(), reasons))


def shortcomings(demand: Demand, supply: Supply) -> list[str]:
    """Why the cluster can never hold the demand, even with nothing else on it; empty where it can."""
    short = {
        name: (amount, supply.total(name))
        for name, amount in demand.total.items()
        if round(amount * _UNIT) > round(supply.total(name) * _UNIT)
    }
    if short:
        asked = ", ".join(
            f"{amount:g} {name} where there are {have:g}" for name, (amount, have) in short.items()
        )
        return [f"one trial needs {asked}"]
    alone = {str(b): b for b in demand.bundles if not fits([b.resources], supply.nodes)}
    if alone:
        return [f"no node is large enough for {whom}" for whom in alone]
    if fits([b.resources for b in demand.bundles], supply.nodes, demand.strategy):
        return []
    how = f" with placement_strategy {demand.strategy}" if demand.strategy.startswith("STRICT") else ""
    parts = f"the {len(demand.bundles)} parts of a trial fit together on no nodes{how}"
    return [f"there is enough in all, but {parts}"]


def explain(demand: Demand, supply: Supply, reasons: Sequence[str]) -> str:
    """The reasons, demand and supply side by side, and which settings lower the demand."""
    lines = ["; ".join(reasons), _table(demand, supply)]
    short = [n for n, amount in demand.total.items() if amount > supply.total(n)] or list(demand.total)
    blamed = {s: None for role in demand.roles if any(role.each.get(n) for n in short) for s in role.settings}
    blamed = {s: None for s in blamed if not _of_other(s, short)}
    lines.append(
        f"Lower {', '.join(blamed) or 'what its processes ask for'}; or join a larger cluster (--ray-address), or give "
        "nodes that are still to come some time (resources.nodes_wait_s)."
        + (" Processes may share CPUs: --num-cpus counts more than there are." if "CPU" in short else "")
    )
    return "\n".join(lines)


def _of_other(setting: str, short: Sequence[str]) -> bool:
    """Whether a setting is about CPUs where GPUs are short, or the other way round."""
    return ("_cpus" in setting and "CPU" not in short) or ("_gpus" in setting and "GPU" not in short)


def _table(demand: Demand, supply: Supply) -> str:
    names = list(demand.total)
    table = Table("", "number", *names, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in table.columns[1:]:
        column.justify = "right"

    def row(what: str, number: int | str, amounts: Mapping[str, float]) -> None:
        table.add_row(what, str(number), *(f"{amounts.get(name, 0.0):g}" for name in names))

    table.add_row("asked for")
    for role in demand.roles:
        row(f"  {role.name}, each", role.count, role.each)
    row("  in all", "", demand.total)
    table.add_row("there")
    kinds = Counter(tuple(node.get(name, 0.0) for name in names) for node in supply.nodes)
    for amounts, count in kinds.most_common(_MOST_ROWS):
        row("  nodes, each", count, dict(zip(names, amounts, strict=True)))
    if len(kinds) > _MOST_ROWS:
        table.add_row(f"  nodes of {len(kinds) - _MOST_ROWS} other kinds")
    row("  in all", len(supply.nodes), {name: supply.total(name) for name in names})
    row("  free now", "", supply.free)
    console = Console(width=200, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())


def fits(
    bundles: Sequence[Mapping[str, float]], nodes: Sequence[Mapping[str, float]], strategy: str = "PACK"
) -> bool:
    """Whether empty nodes hold all bundles, each on one node, and parts of a GPU on one GPU.

    An exact search (bundles of a kind and node are whole numbers, solved by HiGHS through `scipy.optimize.milp`).
    "PACK" and "SPREAD" are wishes that Ray drops where they cannot be met; the strict ones are held to.
    """
    if strategy == "STRICT_PACK":
        return any(fits(bundles, [node]) for node in nodes)
    problem = _Packing(bundles, nodes)
    if strategy == "STRICT_SPREAD":
        problem.one_each()
    return problem.feasible()


class _Packing:
    """x[kind, node] bundles of each kind on each node; y[kind, GPU] of those that take part of a GPU."""

    def __init__(self, bundles: Sequence[Mapping[str, float]], nodes: Sequence[Mapping[str, float]]) -> None:
        kinds = Counter(
            tuple(sorted((name, round(amount * _UNIT)) for name, amount in bundle.items() if amount))
            for bundle in bundles
        )
        self.kinds = [dict(kind) for kind in kinds]
        self.nodes = nodes
        self.size = 0
        self.rows: list[tuple[dict[int, float], float, float]] = []  # of coefficients, lower and upper bound
        self.x = [[self._variable() for _ in nodes] for _ in self.kinds]
        for own, count in zip(self.x, kinds.values(), strict=True):
            self._bound(dict.fromkeys(own, 1.0), count, count)
        self._capacities()

    def _variable(self) -> int:
        self.size += 1
        return self.size - 1

    def _bound(self, coefficients: dict[int, float], low: float, high: float) -> None:
        self.rows.append((coefficients, low, high))

    def _capacities(self) -> None:
        names = {name for kind in self.kinds for name in kind}
        parts = {k for k, kind in enumerate(self.kinds) if 0 < kind.get("GPU", 0) < _UNIT}
        for n, node in enumerate(self.nodes):
            for name in names:
                used = {
                    self.x[k][n]: float(kind[name])
                    for k, kind in enumerate(self.kinds)
                    if name in kind and not (name == "GPU" and k in parts)
                }
                if name == "GPU" and parts:
                    used |= self._divided(n, int(node.get("GPU", 0)), parts)
                self._bound(used, -np.inf, round(node.get(name, 0.0) * _UNIT))

    def _divided(self, n: int, count: int, parts: set[int]) -> dict[int, float]:
        """The GPUs of node `n` that are divided, each of which costs a whole one."""
        opened: dict[int, float] = {}
        held: dict[int, dict[int, float]] = {k: {self.x[k][n]: -1.0} for k in parts}
        for _ in range(count):
            gpu = self._variable()
            opened[gpu] = float(_UNIT)
            self._bound({gpu: 1.0}, 0, 1)
            load: dict[int, float] = {gpu: -float(_UNIT)}
            for k in parts:
                part = self._variable()
                load[part] = float(self.kinds[k]["GPU"])
                held[k][part] = 1.0
            self._bound(load, -np.inf, 0)
        for row in held.values():
            self._bound(row, 0, 0)
        return opened

    def one_each(self) -> None:
        """At most one bundle a node."""
        for n in range(len(self.nodes)):
            self._bound({own[n]: 1.0 for own in self.x}, 0, 1)

    def feasible(self) -> bool:
        if not self.nodes or not self.kinds:
            return not self.kinds
        # Here: every process of a run imports this module, and the driver alone solves anything; a tenth of a start.
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import lil_array

        matrix = lil_array((len(self.rows), self.size))
        for i, (coefficients, _, _) in enumerate(self.rows):
            for j, value in coefficients.items():
                matrix[i, j] = value
        bounds: Any = LinearConstraint(
            matrix.tocsr(), [low for _, low, _ in self.rows], [high for _, _, high in self.rows]
        )
        found = milp(
            np.zeros(self.size),
            constraints=bounds,
            integrality=np.ones(self.size),
            bounds=Bounds(0, np.inf),
            options={"time_limit": _PATIENCE_S},
        )
        return bool(found.status != 2)  # 2: proven to have no solution
