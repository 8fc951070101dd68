"""What a trial reserves, by role and bundle, and what is refused whatever the cluster."""

from __future__ import annotations

import pytest
from placed import config, with_engines
from ray.rllib.algorithms.algorithm import Algorithm

from rllib_vlm.algorithms.placement import ENGINES, ENV_RUNNERS, EVALUATION, LEARNERS, demand_of, problems
from rllib_vlm.algorithms.ppo import VLMPPO
from rllib_vlm.algorithms.vlm_config import VLMAlgorithmConfig
from rllib_vlm.errors import ConfigErrors


def resources(c: VLMAlgorithmConfig) -> list[dict[str, float]]:
    return [{k: v for k, v in b.resources.items() if v} for b in demand_of(c).bundles]


def test_without_engines_a_trial_reserves_what_rllib_would():
    c = config(runner_gpus=1, learner_gpus=1).evaluation(evaluation_num_env_runners=2)
    c.env_runners(custom_resources_per_env_runner={"sim": 1}).resources(num_cpus_for_main_process=3)
    demand = VLMPPO.demand(c.to_dict())
    ours = demand.request()
    assert ours == Algorithm.default_resource_request.__func__(VLMPPO, c.to_dict())
    assert demand.total == {"CPU": 3 + 5 * 0.5 + 2 * 2, "GPU": 7, "sim": 5}
    assert [demand.first_bundle(r.name) for r in demand.roles] == [0, 1, 4, 6]
    assert demand.first_bundle(EVALUATION) == 4


def test_engines_stand_between_runners_and_learners():
    engine = {"CPU": 4, "GPU": 1, "fast": 1}
    c = with_engines(config(), engine, engine)
    assert resources(c) == [{"CPU": 1}, *[{"CPU": 0.5}] * 3, engine, engine, {"CPU": 2}, {"CPU": 2}]
    demand = demand_of(c)
    assert demand.first_bundle(ENGINES) == 4
    assert demand.first_bundle(LEARNERS) == 6
    assert demand.total == {"CPU": 1 + 1.5 + 8 + 4, "GPU": 2, "fast": 2}


@pytest.mark.parametrize("placement", ["shared", "hybrid"])
def test_who_shares_a_gpu_is_reserved_together(placement):
    c = config(placement, runner_gpus=0.25, learner_gpus=0.5)
    both, alone = {"CPU": 2.5, "GPU": 0.75}, {"CPU": 0.5, "GPU": 0.25}
    assert resources(c) == [{"CPU": 1}, both, both, alone]
    assert demand_of(c).bundles[1].roles == (ENV_RUNNERS, LEARNERS)

    c = with_engines(config(placement, learner_gpus=0.5), {"CPU": 1, "GPU": 0.5})
    runner = {"CPU": 0.5}
    engine, learner = {"CPU": 3, "GPU": 1.0}, {"CPU": 2, "GPU": 0.5}
    assert resources(c) == [{"CPU": 1}, runner, runner, runner, engine, learner]
    assert demand_of(c).first_bundle(ENGINES) == 4


def test_a_driver_that_learns_has_the_learners_gpu_and_settings():
    c = config(learner_gpus=1).learners(num_learners=0)
    demand = demand_of(c)
    assert demand.roles[0].each == {"CPU": 2, "GPU": 1}
    assert "learners.num_gpus_per_learner" in demand.roles[0].settings
    assert [r.name for r in demand.without_driver().roles] == [ENV_RUNNERS]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.resources(placement="share"), "placement is 'share'. Did you mean 'shared'"),
        (lambda c: c.resources(placement_strategy="PAKC"), "Did you mean 'PACK'"),
        (lambda c: c.resources(nodes_wait_s=-1), "nodes_wait_s is -1; it must be a number of at least 0"),
        (
            lambda c: c.learners(num_learners=0).resources(placement="shared"),
            "set learners.num_learners to 1",
        ),
        (lambda c: c.env_runners(num_env_runners=0).resources(placement="hybrid"), "num_env_runners is 0"),
        (
            lambda c: (
                c.env_runners(num_gpus_per_env_runner=0.6)
                .learners(num_gpus_per_learner=0.6)
                .resources(placement="shared")
            ),
            "num_gpus_per_env_runner 0.6 and num_gpus_per_learner 0.6 make 1.2: lower them",
        ),
        (
            lambda c: c.learners(num_gpus_per_learner=1).resources(placement="shared"),
            "only one of them uses it",
        ),
        (
            lambda c: c.env_runners(num_gpus_per_env_runner=0.4).learners(num_gpus_per_learner=0.6),
            "placement is 'separate', but .* leave it to chance",
        ),
    ],
)
def test_a_placement_that_cannot_be_meant_is_refused(change, said):
    c = config()
    change(c)
    with pytest.raises(ConfigErrors, match=said):
        c.validate()


@pytest.mark.parametrize(
    ("placement", "engine", "learner", "said"),
    [
        ("separate", 1, 0.5, "generation.engine.num_gpus 1 and num_gpus_per_learner 0.5 leave it to chance"),
        ("separate", 1, 1, None),
        ("separate", 0.5, 1, None),
        ("shared", 0.5, 0.5, "let two learners meet on one GPU: give a learner more than half"),
        ("hybrid", 0.4, 0.6, None),
        ("hybrid", 0.5, 0.6, "make 1.1: lower them"),
    ],
)
def test_engines_and_learners_meet_as_the_placement_says(placement, engine, learner, said):
    c = with_engines(config(placement, learner_gpus=learner), {"CPU": 1, "GPU": engine})
    assert [said in message for message in problems(c)] == ([True] if said else [])
