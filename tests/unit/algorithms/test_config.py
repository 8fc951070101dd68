from __future__ import annotations

import pickle

import pytest
from tiny import tiny_config

from rllib_vlm.algorithms.grpo import VLMGRPOConfig
from rllib_vlm.algorithms.ppo import VLMPPO, VLMPPOConfig
from rllib_vlm.algorithms.sft import VLMSFTConfig
from rllib_vlm.errors import ConfigErrors


def test_builders_set_what_they_name_and_refuse_what_they_do_not():
    config = VLMPPOConfig()
    same = config.prompting(parser="json", max_actions_per_turn=3).generation(stop="</answer>")
    assert same is config
    assert (config.parser, config.max_actions_per_turn, config.stop) == ("json", 3, ("</answer>",))
    config.simulation(process="subprocess", max_turns=7).warm_start(updates=3, lr=0.1)
    assert config.simulator_process == "subprocess" and config.max_turns == 7
    assert config.warm_start_updates == 3 and config.warm_start_lr == 0.1
    config.training(lr=0.5, clip_high=0.3, num_epochs=4).learners(torch_threads=3, num_learners=2)
    assert (config.lr, config.clip_high, config.num_epochs) == (0.5, 0.3, 4)
    assert (config.learner_torch_threads, config.num_learners) == (3, 2)
    config.evaluation(evaluation_at="final", evaluation_duration=3)
    assert config.evaluation_at == ("final",) and config.evaluation_duration == 3
    for section, typo in (
        ("prompting", "parsr"),
        ("generation", "temp"),
        ("simulation", "proces"),
        ("warm_start", "update"),
        ("training", "clip"),
    ):
        with pytest.raises(TypeError, match=typo):
            getattr(config, section)(**{typo: 1})


@pytest.mark.parametrize("name", ["ppo", "grpo", "sft"])
def test_the_defaults_are_valid(name):
    tiny_config(name).validate()


def test_everything_that_is_wrong_is_said_at_once():
    config = tiny_config("ppo").prompting(parser="free_thnk", history="last_")
    config.training(credit="gea", loss_reduction="token_men", clip_low=-1)
    config.evaluation(evaluation_config={"temperatur": 0.0})
    with pytest.raises(ConfigErrors) as error:
        config.validate()
    said = str(error.value)
    for meant in ("free_think", "gae", "token_mean", "clip_low", "temperature"):
        assert meant in said
    assert len(error.value.errors) == 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.training(loss_reduction="fixed"), "loss_reduction_constant"),
        (lambda c: c.prompting(max_prompt_tokens=4000), "row_tokens"),
        (lambda c: c.generation(temperature=0.0), "greedy"),
        (lambda c: c.generation(backend_options={"max_batch": 8}), "'max_batch_size'"),
        (lambda c: c.generation(backend_options={"max_batch_size": "8"}), "max_batch_size is '8'"),
        (lambda c: c.generation(backend_options={"session_cache_mib": "8"}), "session_cache_mib is '8'"),
        (lambda c: c.generation(prompt_precision="bf16"), "'bfloat16'"),
        (lambda c: c.training(downsample=0.5), "value_loss_coeff: 0"),
        (lambda c: c.training(downsample=0.0), "above 0 and at most 1"),
        (lambda c: c.generation(engine={"count": 2}), "has no engines"),
        (lambda c: c.generation(engine={"cuont": 2}), "'count'"),
        (lambda c: c.training(lr_schedule="cosine"), "total_updates"),
        (lambda c: c.training(lr_schedule_by_time=True), "training.time_budget_s"),
        (lambda c: c.warm_start(lr_schedule_by_time=True), "warm_start.time_budget_s"),
        (lambda c: c.training(lr_schedule_by_time=True, time_budget_s=9.0), "linear or cosine"),
        (
            lambda c: c.warm_start(
                updates=9, lr_schedule_by_time=True, time_budget_s=9.0, grounding_updates=2
            ),
            "leave one of them out",
        ),
        (lambda c: c.learners(num_learners=2).training(groups_per_update=1), "groups_per_update"),
        (lambda c: c.simulation(curriculum={"start": 0.1}), "threshold"),
        (lambda c: c.simulation(curriculum={"updates": 3, "stpe": 1}), "step"),
        (lambda c: c.training(grad_clip_by="value"), "global_norm"),
        (lambda c: c.learners(engine="deepsped"), "Did you mean 'deepspeed'"),
        (
            lambda c: c.learners(engine="deepspeed", zero_stage=4),
            "zero_stage is 4; it must be a whole number",
        ),
        (lambda c: c.learners(engine="deepspeed", offload_optimizer="nvme"), "Known: none, cpu"),
        (
            lambda c: c.learners(engine="deepspeed", zero_stage=0, offload_optimizer="cpu"),
            "nothing to offload",
        ),
        (lambda c: c.learners(offload_optimizer="cpu"), "only DeepSpeed offloads"),
        (lambda c: c.learners(engine_options={"dump_state": True}), "the plain engine has none"),
        (lambda c: c.learners(engine="deepspeed").training(optimizer_type="muon"), "whole matrices"),
        (
            lambda c: c.learners(engine="deepspeed", engine_options={"gradient_clipping": 1.0}),
            "set by training.grad_clip",
        ),
        (
            lambda c: c.learners(engine="deepspeed", engine_options={"zero_optimization": {"stage": 3}}),
            "set by learners.zero_stage",
        ),
        (
            lambda c: c.learners(engine="deepspeed").rl_module(
                model_config={"size": "tiny", "dtype": "float16"}
            ),
            "one of float32, bfloat16",
        ),
        (lambda c: c.rl_module(model_config={"size": "tiny", "value_head": {"per": "x"}}), "per is 'x'"),
        (lambda c: c.rl_module(model_config={"sise": "tiny"}), "no 'sise'. Did you mean 'size'"),
        (
            lambda c: c.rl_module(model_config={"size": "tiny", "vlue_head": True}),
            "Did you mean 'value_head'",
        ),
        (lambda c: c.rl_module(model_config={"size": "tiny", "lora": {"rnk": 4}}), "Did you mean 'rank'"),
        (lambda c: c.rl_module(model_config={"size": "tny"}), "Did you mean 'tiny'"),
        (lambda c: c.rl_module(model_config={}), "give either checkpoint .* or size"),
        (lambda c: c.environment("frozen_lak"), "frozen_lake"),
        (lambda c: c.generation(top_p=0.0), "top_p"),
        (lambda c: c.evaluation(evaluation_at="finale"), "final"),
        (lambda c: c.training(lr=[[0, 1.0]]), "lr_schedule"),
        (lambda c: c.training(precision="bf16"), "bfloat16"),
        (lambda c: c.training(policy_loss="ppo"), "policy_loss is 'ppo'.* Known: ppo_clip, gspo, cispo"),
        (lambda c: c.training(mismatch={"cup": 2}), "mismatch: .*Did you mean 'cap'"),
        (lambda c: c.training(mismatch={"correction": "mask"}), "needs old_logprobs: learner"),
        (lambda c: c.training(step_guard={"max_kll": 1}), "step_guard: .*Did you mean 'max_kl'"),
        (
            lambda c: c.training(step_guard={"max_ratio": 0.5, "action": "halt"}),
            r"(?s)max_ratio is 0.5; it must be a number above 1.*action is 'halt'.*Known: skip, stop, abandon",
        ),
        (lambda c: c.training(kl_target=0.1), "kl_target moves kl_coeff"),
        (
            lambda c: c.env_runners(one_step_off_policy=True),
            "num_env_runners is 0: .* Set num_env_runners to 1 or more, or one_step_off_policy to false",
        ),
        (
            lambda c: (
                c.env_runners(num_env_runners=1, num_gpus_per_env_runner=0.5, one_step_off_policy=True)
                .learners(num_learners=1, num_gpus_per_learner=0.5)
                .resources(placement="hybrid")
            ),
            "'hybrid' they take turns on a GPU. Set placement to 'separate' or 'shared'",
        ),
        (
            lambda c: c.env_runners(partial_rollouts=True),
            "partial_rollouts is True; it must be a whole number",
        ),
        (lambda c: c.training(sampling_rounds=2), "group_size of 2 or more"),
        (lambda c: c.training(ratio_level="turns"), "Did you mean 'turn'"),
        (lambda c: c.training(span_weights={"anser": 1.0}), "span_weights: .*Did you mean 'answer'"),
        (lambda c: c.training(span_weights={"answer": -1}), "answer is -1; it must be a number from 0 up"),
        (lambda c: c.simulation(reset_options={"levle": 1.0}), "reset_options: .*Did you mean 'level'"),
        (
            lambda c: c.environment("household").warm_start(grounding_options={"tuor": True}),
            "grounding_options: 'household' has no 'tuor'. Did you mean 'tour'",
        ),
        (
            lambda c: c.rl_module(model_config={"family": "mllama", "size": "tiny"}).warm_start(
                grounding_updates=2
            ),
            "warm_start_grounding_updates is 2; .* family 'mllama' .* set it to 0",
        ),
        (
            lambda c: c.warm_start(updates=1, demonstrations="no/such/demos"),
            "warm_start_demonstrations: no/such/demos does not exist",
        ),
        (
            lambda c: c.rl_module(model_config={"size": "tiny", "mrope_section": [2, 4]}),
            r"mrope_section is \[2, 4\]: give three numbers .* add up to 16",
        ),
        (
            lambda c: c.rl_module(model_config={"size": "tiny", "corpus": "hosehold"}),
            "no corpus 'hosehold' comes with the package; there is household",
        ),
    ],
)
def test_combinations_that_cannot_work(change, said):
    config = tiny_config("ppo")
    change(config)
    with pytest.raises(ConfigErrors, match=said):
        config.validate()


def test_a_configuration_survives_rllibs_dictionaries_and_pickle():
    config = (
        tiny_config("ppo").prompting(history={"name": "last_k", "k": 2}).evaluation(evaluation_at="start")
    )
    again = VLMPPOConfig().update_from_dict(config.to_dict())
    for one in (again, pickle.loads(pickle.dumps(config)), config.copy()):
        assert one.history == {"name": "last_k", "k": 2}
        assert one.evaluation_at == ("start",)
        assert one.env == "frozen_lake" and one.env_config["size"] == 3
        assert one.model_config["hidden_size"] == 32
        assert one.sampling_params == config.sampling_params


def test_evaluation_overrides_only_what_it_names():
    config = tiny_config("ppo").generation(temperature=0.7, max_new_tokens=9)
    config.evaluation(evaluation_config={"temperature": 0.0})
    evaluation = config.get_evaluation_config_object()
    evaluation.validate()
    assert evaluation.sampling_params.temperature == 0.0
    assert evaluation.sampling_params.max_new_tokens == 9
    assert config.sampling_params.temperature == 0.7


def test_a_critic_is_built_exactly_where_one_is_needed():
    assert VLMPPOConfig().model_config["value_head"] is True
    assert VLMGRPOConfig().model_config["value_head"] is False
    assert VLMSFTConfig().model_config["value_head"] is False
    config = VLMPPOConfig().rl_module(model_config={"value_head": {"per": "turn"}})
    assert config.model_config["value_head"] == {"per": "turn"}
    assert config.model_config["family"] == "qwen2_5_vl"


def test_loss_terms_are_those_with_a_coefficient():
    config = VLMPPOConfig().training(entropy_coeff=0.01, kl_coeff=0.0)
    assert set(config.loss_settings().active) == {"policy", "value", "entropy"}
    assert set(config.loss_settings(critic_only=True).active) == {"value"}
    assert set(config.imitation_settings(0).active) == {"imitation", "grounding", "referring"}
    config.warm_start(grounding_updates=2)
    assert set(config.imitation_settings(1).active) == {"grounding"}
    assert set(config.imitation_settings(2).active) == {"imitation", "grounding", "referring"}
    config.warm_start(grounding_coeff=0.0)
    assert set(config.imitation_settings(2).active) == {"imitation"}
    settings = VLMGRPOConfig().loss_settings()
    assert (settings.clip_low, settings.clip_high) == (0.2, 0.28)
    assert VLMPPOConfig().training(clip_low=0.1).loss_settings().clip_high == 0.1


def test_a_warm_start_that_shows_before_it_imitates() -> None:
    config = VLMSFTConfig().warm_start(
        updates=9, minibatch_size=32, grounding_updates=2, grounding_minibatch_size=256,
        policy_share=0.8, policy_share_updates=3,
    )  # fmt: skip
    assert [config.warm_start_rows(n) for n in range(4)] == [256, 256, 32, 32]
    shares = [config.policy_share(n) for n in range(7)]
    assert shares == pytest.approx([0.0, 0.0, 0.2, 0.4, 0.6, 0.8, 0.8])
    config.warm_start(grounding_every=3)
    assert [config.imitates(n) for n in range(9)] == [
        False,
        False,
        True,
        True,
        False,
        True,
        True,
        False,
        True,
    ]
    assert config.warm_start_rows(4) == 256 and config.policy_share(4) == 0.0
    config.warm_start(grounding_minibatch_size=None, policy_share_updates=0, grounding_every=0)
    assert config.warm_start_rows(0) == 32
    assert config.policy_share(2) == 0.8


def test_a_tune_trial_asks_for_what_its_parts_need():
    config = tiny_config("ppo").env_runners(num_env_runners=2, num_cpus_per_env_runner=0.5)
    bundles = VLMPPO.default_resource_request(config).bundles
    assert [b["CPU"] for b in bundles] == [1.0, 0.5, 0.5]


def test_wrong_values_of_many_kinds_are_all_said_though_rllib_would_stop_at_the_first():
    config = tiny_config("ppo").training(minibatch_size={}, num_epochs="two", packing="no", lr="abc")
    config.generation(max_new_tokens="many").environment(env_config={"size": "big", "slipery": True})
    config.evaluation(evaluation_config={"top_p": 7, "temperature": 0.0})
    with pytest.raises(ConfigErrors) as error:
        config.validate()
    said = [e.removeprefix("evaluation_config: ").split(" ")[0] for e in error.value.errors]
    assert sorted(said) == sorted(
        [
            "minibatch_size",
            "num_epochs",
            "packing",
            "lr",
            "max_new_tokens",
            "env_config:",
            "env_config:",
            "top_p",
        ]
    )


def test_the_template_and_the_curriculum_are_looked_at():
    config = tiny_config("ppo").prompting(template="shrt")
    config.simulation(curriculum={"start": "a", "end": 7, "updates": -20})
    with pytest.raises(ConfigErrors) as error:
        config.validate()
    assert len(error.value.errors) == 4 and "Did you mean 'short'?" in str(error.value)
