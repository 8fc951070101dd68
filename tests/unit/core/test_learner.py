"""The learner against a plain reference: one turn at a time, formulas written out, no packing."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import MODEL, tiny_config

from rllib_vlm.batching.packing import pad, to_torch
from rllib_vlm.batching.rows import rows_from_trajectory
from rllib_vlm.connectors.reference_gaps import reference_gaps
from rllib_vlm.connectors.score_rows import ScoreRows, _state_row
from rllib_vlm.connectors.trajectories import to_trajectory
from rllib_vlm.core.columns import INDEX, VLMColumns
from rllib_vlm.core.learner import VLMTorchLearner
from rllib_vlm.core.loss_terms import LOSS_TERMS
from rllib_vlm.core.rl_module import _rows
from rllib_vlm.core.step_guard import StepFigures, StepGuard
from rllib_vlm.core.update_plan import UpdatePlan
from rllib_vlm.credit.gae import TokenGAE
from rllib_vlm.env.vlm_env_runner import VLMEnvRunner
from rllib_vlm.types import Detection, TokenCredit


def prepare(observation="vision", history="current", episodes=5, model=None, **training):
    """A configuration, a built learner and episodes of a policy with the learner's weights."""
    config = tiny_config("ppo", observation=observation).rl_module(model_config={**MODEL, **(model or {})})
    config.prompting(history=history).training(**{"grad_clip": None, **training})
    runner = VLMEnvRunner(config=config, worker_index=0, num_workers=0)
    spec = config.get_multi_rl_module_spec(spaces=runner.get_spaces(), inference_only=False)
    learner = VLMTorchLearner(config=config, module_spec=spec)
    learner.build()
    module = learner.module["default_policy"]
    with torch.no_grad():  # a critic whose values differ from 0 and from state to state
        torch.manual_seed(1)
        module.value_head.outer.weight.normal_(std=0.5)
    runner.share_module(module)
    sampled = runner.sample(num_episodes=episodes)
    runner.env.close()
    for index, episode in enumerate(sampled):
        episode.custom_data[INDEX] = index
    return config, learner, module, sampled


def plan_of(config, **changes):
    values = {"losses": config.loss_settings(), "lr": 0.0, "expects_credit": True, **changes}
    return UpdatePlan(**values)


def turns_alone(trajectory):
    """Each turn as a row of its own."""
    for k, turn in enumerate(trajectory.turns):
        values = (trajectory.values[k],) if trajectory.values else ()
        (row,) = rows_from_trajectory(replace(trajectory, turns=(turn,), values=values))
        yield k, row


def score_alone(module, row):
    """Log-probs, entropies and values of the sampled tokens of one row, written out."""
    batch = to_torch(pad([row]))
    hidden = module.family.hidden(_rows(batch))[0]
    where = np.flatnonzero(row.sampled)
    states = hidden[where - 1]
    logprobs = torch.log_softmax(module.family.logits(states), -1)
    chosen = logprobs[torch.arange(len(where)), torch.as_tensor(row.token_ids[where])]
    finite = logprobs.masked_fill(torch.isinf(logprobs), 0.0)
    entropies = -(logprobs.exp() * finite).sum(-1)
    return chosen, entropies, module.value_head(states)


def reference_gradients(config, module, episodes):
    """d loss / d weights of PPO with critic and entropy, token by token."""
    trajectories = [to_trajectory(e) for e in episodes]
    scored, tokens = [], 0
    for episode, trajectory in zip(episodes, trajectories, strict=True):
        alone = [(row, *score_alone(module, row)) for _, row in turns_alone(trajectory)]
        values = tuple(v.detach().numpy() for *_, v in alone)
        bootstrap = 0.0
        if not trajectory.terminated:
            prompt = episode.custom_data["final_prompt"]
            bootstrap = float(score_alone(module, _state_row(prompt))[2].detach())
        (credit,) = TokenGAE(**config.credit_options)(
            [replace(trajectory, values=values, bootstrap_value=bootstrap)]
        )
        scored += [(*a, c) for a, c in zip(alone, credit, strict=True)]
        tokens += sum(len(c.advantages) for c in credit)
    all_advantages = np.concatenate([c.advantages for *_, c in scored]).astype(np.float64)
    mean, std = all_advantages.mean(), all_advantages.std()
    loss = torch.zeros(())
    for row, logprobs, entropies, values, credit in scored:
        credit: TokenCredit
        advantages = torch.as_tensor((credit.advantages - mean) / (std + 1e-8), dtype=torch.float32)
        old = torch.as_tensor(row.old_logprobs[row.sampled])
        ratio = (logprobs - old).exp()
        loss = loss - torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).sum() / tokens
        returns = torch.as_tensor(credit.returns)
        loss = loss + config.value_loss_coeff * 0.5 * (values - returns).square().sum() / tokens
        loss = loss - config.entropy_coeff * entropies.sum() / tokens
    module.zero_grad()
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return float(loss.detach()), gradients


@pytest.mark.parametrize(
    ("observation", "history", "packing", "micro_batch_tokens"),
    [
        ("text", "current", True, 10_000),
        ("vision", "current", True, 300),  # several micro-batches, gradients accumulated
        ("vision", "full", True, 300),  # turns share rows where prompts grow
        ("vision", "last_2", False, 150),
    ],
)
def test_loss_and_gradients_equal_a_plain_reference_without_packing(
    observation, history, packing, micro_batch_tokens
):
    config, learner, module, episodes = prepare(
        observation,
        history,
        packing=packing,
        micro_batch_tokens=micro_batch_tokens,
        row_tokens=400,
        entropy_coeff=0.05,
        value_loss_coeff=0.7,
    )
    loss, expected = reference_gradients(config, module, episodes)
    result = learner.update(episodes=episodes, plan=plan_of(config, normalize_advantages=True), timesteps={})
    assert float(result["default_policy"]["total_loss"].peek()) == pytest.approx(loss, abs=1e-5)
    found = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    assert set(found) == set(expected)
    largest = max(g.abs().max() for g in expected.values())
    for name, gradient in expected.items():
        error = (found[name] - gradient).abs().max() / largest
        assert error < 1e-5, f"{name}: {error}"


@pytest.mark.parametrize("observation", ["text", "vision"])
def test_the_importance_ratio_is_1_at_unchanged_weights(observation):
    config, learner, _, episodes = prepare(observation, "last_2")
    result = learner.update(episodes=episodes, plan=plan_of(config), timesteps={})
    metrics = result["default_policy"]
    assert 0.0 <= float(metrics["log_ratio_max"].peek()) < 1e-3
    assert float(metrics["clip_fraction"].peek()) == 0.0


def test_the_ratio_is_1_under_temperature_and_nucleus_sampling():
    config = tiny_config("ppo").generation(temperature=0.7, top_p=0.8)
    runner = VLMEnvRunner(config=config, worker_index=0, num_workers=0)
    spec = config.get_multi_rl_module_spec(spaces=runner.get_spaces(), inference_only=False)
    learner = VLMTorchLearner(config=config, module_spec=spec)
    learner.build()
    runner.share_module(learner.module["default_policy"])
    episodes = runner.sample(num_episodes=4)
    runner.env.close()
    result = learner.update(episodes=episodes, plan=plan_of(config), timesteps={})
    assert float(result["default_policy"]["log_ratio_max"].peek()) < 1e-3


def test_gradient_clipping_really_clips():
    config, learner, module, episodes = prepare("text", grad_clip=1e-3)
    learner.update(episodes=episodes, plan=plan_of(config), timesteps={})
    norm = torch.stack([p.grad.norm() for p in module.parameters() if p.grad is not None]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)
    assert learner._step_metrics._norms[0] > 1e-2  # noqa: SLF001  what is reported is the norm before


def test_a_gradient_that_is_not_finite_skips_the_step_and_is_counted():
    config, learner, module, episodes = prepare("text")
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    for episode in episodes:
        episode.rewards.data[-1] = float("nan")
    result = learner.update(episodes=episodes, plan=plan_of(config, lr=1.0), timesteps={})
    assert float(result["default_policy"]["num_skipped_steps"].peek()) == 1
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name], rtol=0, atol=0)


def test_a_loss_that_is_not_finite_skips_the_step_whatever_its_gradient():
    """Huber's gradient is bounded where its loss is infinite."""
    config, learner, module, episodes = prepare("text", value_loss_coeff=0.5, value_huber=1.0)
    episodes[0].rewards.data[-1] = float("inf")
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    plan = plan_of(config, losses=config.loss_settings(critic_only=True), lr=1e-2)
    result = learner.update(episodes=episodes, plan=plan, timesteps={})["default_policy"]
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(g).all() for g in gradients)
    assert float(result["num_skipped_steps"].peek()) == 1
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter.detach(), before[name]), name


def test_minibatches_take_as_many_steps_as_the_plan_says():
    config, learner, _, episodes = prepare("text", episodes=6)
    rows = sum(len(e) for e in episodes)
    plan = plan_of(config, num_epochs=3, minibatch_size=5)
    result = learner.update(episodes=episodes, plan=plan, timesteps={})
    assert float(result["default_policy"]["num_optimizer_steps"].peek()) == 3 * max(1, round(rows / 5))


def test_frozen_parts_do_not_move_and_the_head_has_its_own_rate():
    config, learner, module, episodes = prepare("vision", model={"freeze": ["model.visual.*"]})
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    learner.update(episodes=episodes, plan=plan_of(config, lr=0.0, value_lr=1e-2), timesteps={})
    for name, parameter in module.named_parameters():
        if not name.startswith("value_head."):
            assert torch.equal(parameter.detach(), before[name]), name
        if name.startswith("model.model.visual."):
            assert not parameter.requires_grad and parameter.grad is None
    assert not torch.equal(module.value_head.outer.bias.detach(), before["value_head.outer.bias"])


def test_a_critic_that_warms_up_moves_nothing_but_its_head():
    config, learner, module, episodes = prepare("vision", value_loss_coeff=0.5)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    plan = plan_of(config, losses=config.loss_settings(critic_only=True), lr=1e-2)
    result = learner.update(episodes=episodes, plan=plan, timesteps={})["default_policy"]
    moved = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all(name.startswith("value_head.") for name in moved)
    assert float(result["value_loss"].peek()) > 0.0
    # Elsewhere it reads features that learn with it.
    learner.update(episodes=episodes, plan=plan_of(config, lr=1e-2), timesteps={})
    assert any(not torch.equal(p, before[n]) for n, p in module.named_parameters() if n not in moved)


def guarded(action, **limits):
    """(weights that moved, optimizer steps, guarded steps, optimizer state) of one update in many steps."""
    config, learner, module, episodes = prepare("text")
    # So that the optimizers have a state, and the weights are still those that sampled.
    learner.update(episodes=episodes, plan=plan_of(config, lr=0.0), timesteps={})
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    moments = [copy.deepcopy(o.state_dict()["state"]) for o in learner._optimizers]  # noqa: SLF001
    plan = plan_of(config, lr=1e-2, num_epochs=4, minibatch_size=4, guard=StepGuard(action=action, **limits))
    result = learner.update(episodes=episodes, plan=plan, timesteps={})["default_policy"]
    moved = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    after = [o.state_dict()["state"] for o in learner._optimizers]  # noqa: SLF001
    same = all(
        torch.equal(torch.as_tensor(a[k][name]), torch.as_tensor(b[k][name]))
        for a, b in zip(moments, after, strict=True)
        for k in a
        for name in a[k]
    )
    steps, objected = (float(result[f"num_{name}_steps"].peek()) for name in ("optimizer", "guarded"))
    return moved, steps, objected, same


def test_the_guard_skips_stops_or_takes_back():
    moved, planned, objected, _ = guarded("skip", max_kl=1e9)
    assert moved and planned > 8 and objected == 0
    moved, steps, objected, same = guarded("skip", max_grad_norm=1e-9)
    assert not moved and steps == objected == planned and same
    moved, steps, objected, same = guarded("stop", max_kl=1e-4)
    assert moved and 1 < steps < planned and objected == 1 and not same
    moved, steps, objected, same = guarded("abandon", max_kl=1e-4)
    assert not moved and 1 < steps < planned and objected == 1 and same
    moved, steps, objected, _ = guarded("stop", max_ratio=1.0001)
    assert moved and steps < planned and objected == 1
    moved, steps, objected, _ = guarded("stop", max_ratio_p99=1.0001)
    assert moved and steps < planned and objected == 1


def test_nothing_that_is_not_a_number_passes_the_guard():
    guard = StepGuard(max_kl=1.0, max_grad_norm=2.0)
    assert guard.violations(StepFigures(tokens=1.0, kl_sum=0.5), 1.0) == []
    assert guard.violations(StepFigures(tokens=1.0, kl_sum=float("nan")), 3.0) == [
        "kl nan > 1",
        "grad_norm 3 > 2",
    ]


def test_one_learner_s_loss_that_is_not_finite_is_known_to_all():
    shares = [StepFigures(loss=1.5), StepFigures(loss=0.5)]
    assert StepFigures().join(shares).loss == 2.0
    for bad in (float("nan"), float("inf")):
        assert not np.isfinite(StepFigures().join([*shares, StepFigures(loss=bad)]).loss)


def test_the_kl_term_is_0_at_the_reference_and_above_it_elsewhere():
    config, learner, module, episodes = prepare("text", kl_coeff=0.1)
    first = learner.update(episodes=episodes, plan=plan_of(config, lr=1e-2), timesteps={})
    second = learner.update(episodes=episodes, plan=plan_of(config, lr=0.0), timesteps={})
    assert float(first["default_policy"]["kl_to_reference"].peek()) == pytest.approx(0.0, abs=1e-6)
    assert float(second["default_policy"]["kl_to_reference"].peek()) > 1e-4
    state = learner.get_state()
    other = VLMTorchLearner(config=config, module=None, module_spec=learner._module_spec)  # noqa: SLF001
    other.build()
    other.set_state(state)
    again = other.update(episodes=episodes, plan=plan_of(config, lr=0.0), timesteps={})
    assert float(again["default_policy"]["kl_to_reference"].peek()) == pytest.approx(
        float(second["default_policy"]["kl_to_reference"].peek()), rel=1e-3
    )


def test_a_kl_in_the_reward_is_what_credit_is_given_of():
    config, learner, module, episodes = prepare("text", kl_coeff=0.5, kl_in="reward")
    assert "kl" not in config.loss_settings().active
    learner.update(episodes=episodes, plan=plan_of(config, lr=1e-2, kl_reward=0.5), timesteps={})
    # The policy has moved and the reference has not: charged is what the sampler's tokens cost against it.
    with torch.no_grad():
        learner._reference.model.model.language_model.embed_tokens.weight.mul_(1.2)  # noqa: SLF001
    assigned = []
    piece = next(c for c in learner._learner_connector.connectors if isinstance(c, ScoreRows))  # noqa: SLF001
    assign = piece._assign  # noqa: SLF001

    class Watched:
        stage = "learner"

        def __call__(self, filled):
            assigned.extend(filled)
            return assign(filled)

    piece._assign = Watched()  # noqa: SLF001
    result = learner.update(episodes=episodes, plan=plan_of(config, kl_reward=0.5), timesteps={})
    costs = []
    for trajectory in assigned:
        for k, row in turns_alone(trajectory):
            reference, _, _ = score_alone(learner._reference, row)  # noqa: SLF001
            cost = row.old_logprobs[row.sampled] - reference.detach().numpy()
            np.testing.assert_allclose(trajectory.token_rewards[k], -0.5 * cost, atol=1e-5)
            costs.append(cost)
    costs = np.concatenate(costs)
    assert np.abs(costs).max() > 1e-2
    assert float(result["default_policy"]["kl_to_reference"].peek()) == pytest.approx(costs.mean(), abs=1e-5)


def test_the_driver_is_told_how_far_each_token_is_from_the_reference():
    config, learner, module, episodes = prepare("text", kl_coeff=0.5, kl_in="reward")
    plan = plan_of(config, kl_reward=0.5)
    at_first = reference_gaps(learner, plan=plan, shards=[episodes])
    assert max(np.abs(gap).max() for own in at_first.values() for gap in own) < 1e-3
    with torch.no_grad():  # the policy stays as it was when it sampled, and the reference is another
        learner._reference.model.model.language_model.embed_tokens.weight.mul_(1.2)  # noqa: SLF001
    found = reference_gaps(learner, plan=plan, shards=[episodes])
    assert sorted(found) == list(range(len(episodes)))
    for index, episode in enumerate(episodes):
        trajectory = to_trajectory(episode)
        assert len(found[index]) == len(trajectory.turns)
        for k, row in turns_alone(trajectory):
            reference, _, _ = score_alone(learner._reference, row)  # noqa: SLF001
            expected = row.old_logprobs[row.sampled] - reference.detach().numpy()
            np.testing.assert_allclose(found[index][k], expected, atol=1e-5)
            assert np.abs(expected).max() > 1e-4


def test_the_reference_may_be_the_model_without_its_adapters():
    lora = {"lora": {"rank": 2, "target": ["q_proj", "v_proj"]}}
    config, learner, module, episodes = prepare("text", model=lora, kl_coeff=0.1, kl_reference="adapters_off")
    plan = plan_of(config, lr=5e-2, reference="adapters_off")
    first = learner.update(episodes=episodes, plan=plan, timesteps={})["default_policy"]
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    second = learner.update(episodes=episodes, plan=replace(plan, lr=0.0), timesteps={})["default_policy"]
    assert learner._reference is None  # noqa: SLF001  (no second copy of the weights)
    assert float(first["kl_to_reference"].peek()) == pytest.approx(0.0, abs=1e-6)
    assert float(second["kl_to_reference"].peek()) > 1e-5
    assert any("lora" in n for n in trained)
    assert trained == {n for n, p in module.named_parameters() if p.requires_grad}


def test_words_are_chosen_among_those_of_the_step_however_it_is_cut():
    found = {}
    for tokens in (10_000, 150):
        config, learner, module, episodes = prepare("vision", micro_batch_tokens=tokens, row_tokens=400)
        for i, episode in enumerate(episodes):
            prompts = episode.extra_model_outputs[VLMColumns.PROMPT]
            seen = Detection(image=0, x=0.1, y=0.1, words=f"{['red', 'blue', 'pink'][i % 3]} mug")
            prompts[:] = [module.family.label(prompt, [seen], images=1) for prompt in prompts]
        losses = replace(config.loss_settings(), coefficients={"grounding": 1.0})
        result = learner.update(
            episodes=episodes, plan=plan_of(config, losses=losses, expects_credit=False), timesteps={}
        )
        found[tokens] = float(result["default_policy"]["grounding_loss"].peek())
    assert found[150] == pytest.approx(found[10_000], rel=1e-5)
    assert found[150] > np.log(4) / 2  # four words: three colours and a kind


def test_weights_of_parts_scale_their_tokens_gradient_and_0_leaves_them_out():
    def gradient(**weights):
        config, learner, module, episodes = prepare("text", span_weights=weights)
        losses = replace(
            config.loss_settings(), coefficients={"policy": 1.0}, reduction="fixed", reduction_constant=9
        )
        result = learner.update(episodes=episodes, plan=plan_of(config, losses=losses), timesteps={})
        found = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
        return found, float(result["default_policy"]["grad_norm"].peek())

    plain, _ = gradient()
    halved, _ = gradient(answer=0.5, rest=0.5)
    torch.testing.assert_close(halved, 0.5 * plain, rtol=1e-3, atol=1e-6)
    nothing, norm = gradient(answer=0.0, rest=0.0)
    assert norm == 0.0 and not nothing.any()
    answers, _ = gradient(rest=0.0, answer=1.0)
    rest, _ = gradient(rest=1.0, answer=0.0)
    torch.testing.assert_close(answers + rest, plain, rtol=1e-3, atol=1e-5)


def test_with_the_learners_own_log_probs_the_ratio_is_1_in_bfloat16_too():
    found, gap = {}, {}
    for whose in ("sampler", "learner"):
        config, learner, _, episodes = prepare("vision", old_logprobs=whose, precision="bfloat16")
        result = learner.update(episodes=episodes, plan=plan_of(config, precision="bfloat16"), timesteps={})[
            "default_policy"
        ]
        found[whose] = float(result["log_ratio_max"].peek())
        gap[whose] = float(result["sampler_gap"].peek())
    assert found["sampler"] > 10 * found["learner"]
    assert found["learner"] < 1e-3
    # What the two are apart is in the metrics, whichever is taken.
    assert float(result["mismatch_log_ratio_max"].peek()) == pytest.approx(found["sampler"], rel=0.5)
    assert gap["learner"] == pytest.approx(gap["sampler"], rel=0.5) and gap["sampler"] > 1e-4
    assert 0.0 < float(result["mismatch_kl"].peek()) < 1e-2
    assert float(result["mismatch_corrected"].peek()) == 0.0


def test_every_term_has_a_mask_of_the_batch():
    assert {term.mask for term in LOSS_TERMS.values()} == {
        "loss_mask",
        "value_mask",
        "grounding_mask",
        "referring_mask",
    }


def test_a_step_without_anything_to_learn_from_leaves_the_weights() -> None:
    """In a distributed update, a learner that fails where its rows name nothing would leave the others waiting."""
    config, learner, module, episodes = prepare(episodes=2)
    losses = config.imitation_settings(0)
    plan = plan_of(config, losses=replace(losses, coefficients={"grounding": 1.0}), expects_credit=False)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    learner.update(episodes=episodes, plan=plan)
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
