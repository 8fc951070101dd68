"""Which demands a cluster can hold, and the table beside which it cannot."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placed import config

from rllib_vlm.algorithms.placement import demand_of
from rllib_vlm.algorithms.supply import Supply, explain, fits, shortcomings

NODE = {"CPU": 8.0, "GPU": 2.0}


def supply(*nodes: dict[str, float]) -> Supply:
    return Supply(nodes=nodes, free={"CPU": 0.5})


def test_what_fits_has_no_shortcomings():
    assert shortcomings(demand_of(config()), supply({"CPU": 6.5})) == []
    c = config("shared", runner_gpus=0.25, learner_gpus=0.5)
    assert shortcomings(demand_of(c), supply(NODE)) == []


def test_totals_that_are_too_large_are_told_with_both_numbers():
    (reason,) = shortcomings(demand_of(config(learner_gpus=1)), supply({"CPU": 4.0}))
    assert reason == "one trial needs 6.5 CPU where there are 4, 2 GPU where there are 0"


def test_a_bundle_no_node_holds_is_refused_though_the_total_is_there():
    demand = demand_of(config().learners(num_cpus_per_learner=6))
    (reason,) = shortcomings(demand, supply(*[{"CPU": 4.0}] * 5))
    assert reason == "no node is large enough for learner (6 CPU)"


def test_parts_that_do_not_fit_together_are_refused():
    demand = demand_of(config().env_runners(num_env_runners=0).learners(num_cpus_per_learner=3))
    (reason,) = shortcomings(demand, supply({"CPU": 5.0}, {"CPU": 2.0}))
    assert "3 parts of a trial fit together on no nodes" in reason
    assert not shortcomings(demand, supply({"CPU": 4.0}, {"CPU": 3.0}))


def test_a_node_that_is_named_by_a_resource_must_be_there():
    c = config().env_runners(custom_resources_per_env_runner={"sim": 1})
    assert shortcomings(demand_of(c), supply({"CPU": 64.0})) == ["one trial needs 3 sim where there are 0"]
    assert not shortcomings(demand_of(c), supply({"CPU": 6.0}, {"CPU": 2.0, "sim": 3.0}))
    # Simulators' nodes hold their runners only, if they are too small for more.
    assert shortcomings(demand_of(c), supply({"CPU": 6.0}, {"CPU": 1.0, "sim": 3.0}))


def test_strict_strategies_are_held_to():
    parts = [{"CPU": 1.0}] * 3
    nodes = [{"CPU": 2.0}, {"CPU": 2.0}]
    assert fits(parts, nodes, "PACK")
    assert fits(parts, nodes, "SPREAD")
    assert not fits(parts, nodes, "STRICT_PACK")
    assert not fits(parts, nodes, "STRICT_SPREAD")
    assert fits(parts, [*nodes, {"CPU": 1.0}], "STRICT_SPREAD")
    assert fits(parts, [*nodes, {"CPU": 3.0}], "STRICT_PACK")


@pytest.mark.parametrize(
    ("gpus", "fit"),
    [
        ([0.4] * 8 + [0.6] * 8, True),
        ([0.6] * 9, False),  # 5.4 of 8, but no GPU holds two
        ([0.5] * 10 + [1] * 3, True),
        ([0.5] * 9 + [1] * 4, False),
        ([0.3] * 24, True),
        ([0.3] * 25, False),
        ([2] * 4, True),
    ],
)
def test_parts_of_a_gpu_are_of_one_gpu(gpus, fit):
    assert fits([{"GPU": amount} for amount in gpus], [{"GPU": 4.0}, {"GPU": 4.0}]) is fit


def by_trying(bundles: list[int], nodes: list[int]) -> bool:
    """Every way to deal bundles out to nodes."""
    for where in itertools.product(range(len(nodes)), repeat=len(bundles)):
        load = [0] * len(nodes)
        for bundle, node in zip(bundles, where, strict=True):
            load[node] += bundle
        if all(used <= there for used, there in zip(load, nodes, strict=True)):
            return True
    return not bundles


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=5), st.lists(st.integers(1, 8), min_size=1, max_size=3)
)
def test_the_search_agrees_with_trying_everything(bundles, nodes):
    found = fits([{"CPU": float(b)} for b in bundles], [{"CPU": float(n)} for n in nodes])
    assert found is by_trying(bundles, nodes)


def test_the_table_shows_demand_beside_supply_and_the_way_out():
    demand = demand_of(config(learner_gpus=1))
    there = supply({"CPU": 8.0}, {"CPU": 8.0}, {"CPU": 4.0, "GPU": 1.0})
    text = explain(demand, there, shortcomings(demand, there))
    rows = [line.split() for line in text.splitlines()]
    assert rows[0] == ["one", "trial", "needs", "2", "GPU", "where", "there", "are", "1"]
    assert ["learners,", "each", "2", "2", "1"] in rows
    assert ["in", "all", "6.5", "2"] in rows
    assert ["nodes,", "each", "2", "8", "0"] in rows
    assert ["in", "all", "3", "20", "1"] in rows
    assert ["free", "now", "0.5", "0"] in rows
    assert "Lower learners.num_learners, learners.num_gpus_per_learner; or" in text
    assert "num_cpus" not in text
