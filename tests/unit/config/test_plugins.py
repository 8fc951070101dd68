import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, PopulationBasedTraining

from rllib_vlm.config.plugins import make_loggers, make_scheduler, make_searcher
from rllib_vlm.config.schema import Plugin
from rllib_vlm.errors import RLlibVLMError, UnknownNameError

SETTINGS = {"lr": 1e-4, "entropy_coeff": 0.0}


def test_schedulers_by_name():
    assert isinstance(
        make_scheduler(Plugin(type="asha", max_t=9, grace_period=2), SETTINGS), AsyncHyperBandScheduler
    )
    assert isinstance(make_scheduler(Plugin(type="FIFO"), SETTINGS), FIFOScheduler)


def test_mutations_of_pbt_go_by_keyword_or_section():
    mutations = {"training.lr": [1e-5, 1e-4], "entropy_coeff": [0.0, 0.1]}
    scheduler = make_scheduler(Plugin(type="pbt", hyperparam_mutations=mutations), SETTINGS)
    assert isinstance(scheduler, PopulationBasedTraining)
    assert set(scheduler._hyperparam_mutations) == {"lr", "entropy_coeff"}
    with pytest.raises(RLlibVLMError, match="'training.lrr' is no setting. Did you mean 'lr'"):
        make_scheduler(Plugin(type="pbt", hyperparam_mutations={"training.lrr": [1]}), SETTINGS)


def test_unknown_names_and_keywords_say_what_was_meant():
    with pytest.raises(UnknownNameError, match="Did you mean 'asha'"):
        make_scheduler(Plugin(type="asa"), SETTINGS)
    with pytest.raises(RLlibVLMError, match="asha takes no 'max_tt'. Did you mean 'max_t'"):
        make_scheduler(Plugin(type="asha", max_tt=3), SETTINGS)
    with pytest.raises(RLlibVLMError, match="grace_period"):
        make_scheduler(Plugin(type="asha", max_t=1, grace_period=9), SETTINGS)
    with pytest.raises(UnknownNameError, match="Did you mean 'optuna'"):
        make_searcher(Plugin(type="optunaa"))
    with pytest.raises(UnknownNameError, match="Did you mean 'wandb'"):
        make_loggers(["wandbb"])


def test_random_search_by_name():
    assert type(make_searcher(Plugin(type="random", random_state=3))).__name__ == "BasicVariantGenerator"


def test_loggers_are_rays_own_and_wandbs_keeps_the_end_of_a_run():
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    first, second = make_loggers([{"wandb": {"project": "p"}}, "mlflow"])
    from ray.air.integrations.wandb import WandbLoggerCallback

    from rllib_vlm.callbacks.trackers import WandbLogger

    assert type(first) is WandbLogger and issubclass(WandbLogger, WandbLoggerCallback)
    assert first.project == "p"
    assert type(second).__module__ == "ray.air.integrations.mlflow"
    with pytest.raises(RLlibVLMError, match="Did you mean 'experiment_name'"):
        make_loggers([{"mlflow": {"experiment_nam": "x"}}])


def test_what_tune_itself_refuses_is_an_error_of_ours():
    with pytest.raises(RLlibVLMError, match="hyperparam_mutations"):
        make_scheduler(Plugin(type="pbt"), {})
