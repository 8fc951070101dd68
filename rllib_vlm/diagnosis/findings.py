"""The table of what `rllib diagnose` knows, harm first, then what may have caused it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rllib_vlm.diagnosis import batches, collapse, optimization
from rllib_vlm.diagnosis import curves as c
from rllib_vlm.diagnosis.finding import Change, Check, Finding, examine
from rllib_vlm.diagnosis.records import Trial


def _above(least: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int | float) and value > least


def _is(wanted: Any) -> Callable[[Any], bool]:
    return lambda value: type(value) is type(wanted) and value == wanted


def _is_set(value: Any) -> bool:
    return value not in (None, {}, [])


_LOWER_RATE = Change("training.lr", "a half or a third of it")
_HOLD = Change("training.kl_coeff", "0.01, to hold the policy near where it began", _above(0.0))
_CLIP_HIGHER = Change(
    "training.clip_high", "0.28, so that rare tokens can become likelier (DAPO's clip-higher)", _above(0.2)
)
_RESAMPLE = Change(
    "training.sampling_rounds",
    "3: groups that teach nothing are dropped and others sampled instead",
    _above(1),
)
_PENALTY = Change(
    "prompting.invalid_penalty", "0.1, so that an answer that does not parse costs something", _above(0.0)
)

FINDINGS: tuple[Check, ...] = (
    Check(
        name="success_fell",
        title="Success fell",
        looks_at=(c.SUCCESS,),
        see=collapse.success_fell,
        changes=(
            Change(
                "callbacks",
                "[report, guard]: the run then goes back to a healthy state by itself",
                lambda value: "guard" in str(value).lower(),
            ),
            _LOWER_RATE,
            _HOLD,
        ),
    ),
    Check(
        name="never_ending",
        title="Episodes run out of turns and never end",
        looks_at=(c.TURNS, c.SUCCESS, c.VALUE_MEAN),
        see=collapse.never_ending,
        changes=(
            Change(
                "training.bootstrap_truncated",
                "false: running out of turns is failing, not worth what the critic says of the last state",
                _is(False),
            ),
            Change(
                "training.credit_options",
                "a gamma below 1, so that a reward is worth more the sooner it comes",
                lambda value: isinstance(value, dict) and value.get("gamma", 1.0) != 1.0,
            ),
            Change("simulation.max_turns", "about twice what a good episode takes"),
        ),
    ),
    Check(
        name="entropy_blow_up",
        title="Entropy blew up and answers stopped parsing",
        looks_at=(c.ENTROPY, c.PARSE_FAILURES),
        see=collapse.entropy_blow_up,
        changes=(
            _PENALTY,
            _LOWER_RATE,
            _HOLD,
            Change("training.entropy_coeff", "0: a bonus on entropy drives it further", _is(0.0)),
        ),
    ),
    Check(
        name="echo_trap",
        title="Echo trap",
        looks_at=(c.ENTROPY, c.GROUP_SPREAD, c.RETURN),
        see=collapse.echo_trap,
        changes=(
            _RESAMPLE,
            _CLIP_HIGHER,
            Change("training.num_epochs", "1: fewer steps on the same episodes", _is(1)),
            Change(
                "simulation.num_task_seeds", "null, so that every task is new", lambda value: value is None
            ),
            _LOWER_RATE,
        ),
    ),
    Check(
        name="entropy_collapse",
        title="Entropy collapsed",
        looks_at=(c.ENTROPY,),
        see=collapse.entropy_collapse,
        changes=(
            _CLIP_HIGHER,
            Change("training.entropy_coeff", "0.001 to 0.01, watching parse failures", _above(0.0)),
            _HOLD,
            Change("generation.temperature", "1.0 while training", _is(1.0)),
        ),
    ),
    Check(
        name="long_answers",
        title="Answers grew long or were cut",
        looks_at=(c.ANSWER_TOKENS, c.CUT_ANSWERS),
        see=collapse.long_answers,
        changes=(
            Change("generation.max_new_tokens", "more, if the cut answers were on their way to a sound end"),
            Change("training.mask_truncated", "true: answers that were cut teach nothing", _is(True)),
            Change(
                "training.loss_reduction",
                "token_mean or fixed: a mean over each sequence spares long wrong answers",
                lambda value: value != "sequence_mean_token_mean",
            ),
            _PENALTY,
        ),
    ),
    Check(
        name="rate_restart",
        title="The learning rate restarted",
        looks_at=(c.LEARNING_RATE,),
        see=optimization.rate_restart,
        changes=(
            Change(
                "training.total_updates",
                "the same before and after a resume: the schedule is counted from it",
            ),
            Change("training.lr", "the same before and after a resume"),
            Change("training.lr_warmup_updates", "some, where a higher rate is meant", _above(0)),
        ),
    ),
    Check(
        name="ratio_explosion",
        title="Updates went too far",
        looks_at=(c.RATIO_MAX, c.KL, c.CLIP_FRACTION),
        see=optimization.ratio_explosion,
        changes=(
            Change(
                "training.step_guard",
                "{max_kl: 0.05, action: stop}: the rest of such an update is left out",
                _is_set,
            ),
            Change(
                "training.dual_clip", "3, which bounds what a token of negative advantage does", _above(1.0)
            ),
            _LOWER_RATE,
            Change("training.num_epochs", "1: fewer steps on the same episodes", _is(1)),
            Change("training.minibatch_size", "larger: fewer steps an update"),
        ),
    ),
    Check(
        name="skipped_steps",
        title="Steps were skipped, or losses not finite",
        looks_at=(c.SKIPPED_STEPS, c.POLICY_LOSS, c.TOTAL_LOSS, c.VALUE_LOSS),
        see=optimization.skipped_steps,
        changes=(
            Change("training.precision", "float32", _is("float32")),
            _LOWER_RATE,
            Change(
                "training.grad_clip", "1.0", lambda value: isinstance(value, float) and 0.0 < value <= 1.0
            ),
        ),
    ),
    Check(
        name="dead_critic",
        title="The critic explains nothing",
        looks_at=(c.EXPLAINED, c.VALUE_LOSS),
        see=optimization.dead_critic,
        changes=(
            Change("training.value_lr", "ten times training.lr or more: its head begins from nothing"),
            Change("training.critic_warmup_updates", "3 or more", _above(2)),
            Change(
                "rl_module.model_config.value_head",
                "{detach: true, width: 256}: a head of its own that does not pull at the policy",
                lambda value: (
                    isinstance(value, dict) and bool(value.get("detach")) and bool(value.get("width"))
                ),
            ),
            Change(
                "training.value_clip",
                "null: a clip keeps values from reaching large returns",
                lambda v: v is None,
            ),
            Change(
                "training.credit",
                "fitted_gae where the simulator tells its state, or grpo with training.group_size 8: neither needs it",
            ),
        ),
    ),
    Check(
        name="sampler_gap",
        title="Sampler and learner differ",
        looks_at=(c.SAMPLER_GAP, c.FIRST_LOG_RATIO, c.MISMATCH_KL, c.MISMATCH_LOG_RATIO),
        see=optimization.sampler_gap,
        changes=(
            Change(
                "training.old_logprobs",
                "learner: ratios are then to what the learner computes",
                _is("learner"),
            ),
            Change("training.mismatch", "{correction: truncate, cap: 2}, with the former", _is_set),
            Change("training.precision", "float32, as samplers compute", _is("float32")),
        ),
    ),
    Check(
        name="masked_batch",
        title="Updates without anything to learn from",
        looks_at=(c.TOKENS, c.POLICY_LOSS, c.GRAD_NORM),
        see=batches.masked_batch,
        changes=(
            _RESAMPLE,
            Change("training.group_size", "more, where groups are all alike or of one", _above(15)),
            Change(
                "generation.max_new_tokens", "more, where training.mask_truncated leaves out what was cut"
            ),
            Change("training.span_weights", "above 0 for some part of the answer", lambda value: not value),
        ),
    ),
    Check(
        name="groups_of_one",
        title="Groups of one episode",
        looks_at=(c.GROUPS_OF_ONE,),
        see=batches.groups_of_one,
        changes=(
            Change("training.group_size", "8", _above(1)),
            Change(
                "training.credit",
                "one that compares no siblings: turn_gae, or reinforce_pp with normalize_advantages",
            ),
        ),
    ),
    Check(
        name="groups_alike",
        title="Most groups without spread",
        looks_at=(c.GROUPS_ALIKE, c.GROUPS_DROPPED),
        see=batches.groups_alike,
        changes=(
            _RESAMPLE,
            Change("training.group_size", "more: 16 episodes are less often all alike than 8", _above(15)),
            Change("simulation.curriculum", "one that keeps tasks neither too easy nor too hard", _is_set),
            Change("training.drop_uninformative", "true: they are not even read", _is(True)),
        ),
    ),
    Check(
        name="failing_simulators",
        title="Simulators fail",
        looks_at=(c.CRASHES, c.TIMEOUTS, c.REPLACED_GROUPS),
        see=batches.failing_simulators,
        changes=(
            Change(
                "simulation.process", "subprocess: one that dies takes nothing with it", _is("subprocess")
            ),
            Change("simulation.turn_deadline_s", "longer, where turns time out"),
            Change("simulation.reset_deadline_s", "longer, where resets time out"),
            Change("env_runners.num_envs_per_env_runner", "fewer, where memory or cores are short"),
        ),
    ),
    Check(
        name="nothing_learnt",
        title="Nothing was learnt",
        looks_at=(c.SUCCESS, c.KL, c.REFERENCE_KL),
        see=optimization.nothing_learnt,
        changes=(
            Change("training.lr", "three times as much"),
            Change("training.minibatch_size", "smaller: more steps an update"),
            Change("training.kl_coeff", "less", _is(0.0)),
            Change("training.groups_per_update", "more, for advantages with less noise"),
        ),
    ),
)


def diagnose(trial: Trial) -> list[Finding]:
    """What the table sees in the updates of reinforcement learning."""
    if not len(trial.updates):
        return []
    found = [examine(check, trial.updates, trial.settings) for check in FINDINGS]
    return [finding for finding in found if finding is not None]
