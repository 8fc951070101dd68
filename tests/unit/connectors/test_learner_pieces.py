"""Rows, values, credit and steps, as the learner pipeline makes them of episodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from episodes import episode_of
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from rows import trajectory
from tiny import MODEL

from rllib_vlm.batching.packing import unpack
from rllib_vlm.connectors import pipelines
from rllib_vlm.connectors.trajectories import attach_credit, credit_of, to_trajectory
from rllib_vlm.core.columns import VLMColumns
from rllib_vlm.core.loss_terms import LossSettings
from rllib_vlm.core.rl_module import VLMRLModule
from rllib_vlm.core.update_plan import UpdatePlan
from rllib_vlm.credit.group import spread_over_tokens
from rllib_vlm.types import TokenCredit

LOSSES = LossSettings(coefficients={"policy": 1.0})


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    made = VLMRLModule(
        model_config={"family": "qwen2_5_vl", **MODEL, "value_head": True},
        observation_space=None,
        action_space=None,
    )
    torch.nn.init.normal_(made.value_head.outer.weight)
    return made


@pytest.fixture
def family(module):
    return module.family


def run(module, episodes, *, credit="gae", credit_options=None, plan=None, gather=None, **options):
    pieces = pipelines.learner(
        credit=credit,
        credit_options=credit_options or {},
        row_tokens=options.pop("row_tokens", 300),
        micro_batch_tokens=options.pop("micro_batch_tokens", 200),
        mask_truncated=options.pop("mask_truncated", False),
        span_weights={},
        old_logprobs="sampler",
        mismatch={},
        packing=options.pop("packing", True),
    )
    multi = MultiRLModule(rl_module_specs={})
    multi.add_module(DEFAULT_MODULE_ID, module)
    shared = {
        "plan": plan or UpdatePlan(losses=LOSSES, lr=0.1),
        "all_gather": gather or (lambda item: [item]),
    }
    batch = {}
    for piece in pieces[:-1]:
        batch = piece(rl_module=multi, batch=batch, episodes=episodes, shared_data=shared)
    before = dict(batch)
    packed = pieces[-1](rl_module=multi, batch=batch, episodes=episodes, shared_data=shared)
    return before, packed[DEFAULT_MODULE_ID]


def test_an_episode_and_its_trajectory_are_the_same(family):
    original = trajectory(family, 3, terminated=False)
    episode = episode_of(original)
    again = to_trajectory(episode)
    assert again.group == original.group
    assert (again.terminated, again.truncated, again.success) == (False, True, False)
    assert again.total_reward == original.total_reward
    for a, b in zip(again.turns, original.turns, strict=True):
        assert a.prompt is b.prompt and a.completion is b.completion
        assert a.info["after"] is True  # the info of the state the turn led to


def test_credit_travels_in_the_episode(family):
    episode = episode_of(trajectory(family, 2))
    assert credit_of(episode) is None
    credit = [
        TokenCredit(advantages=np.full(n, 0.5, np.float32), returns=np.zeros(n, np.float32))
        for n in (len(t.completion.token_ids) for t in to_trajectory(episode).turns)
    ]
    attach_credit(episode, credit)
    assert credit_of(episode) == credit


def test_values_are_those_of_the_module_and_credit_follows_from_them(module, family):
    episodes = [episode_of(trajectory(family, n, group=f"g{n}"), index=n) for n in (1, 3, 2)]
    before, _ = run(module, episodes, credit_options={"gamma": 1.0, "lam": 1.0})
    for t, credit in zip(before[VLMColumns.TRAJECTORIES], before[VLMColumns.TRAJECTORY_CREDIT], strict=True):
        assert [len(v) for v in t.values] == [len(turn.completion.token_ids) for turn in t.turns]
        rewards = np.array([turn.reward for turn in t.turns])
        for k, own in enumerate(credit):
            # With gamma = lam = 1 the return of every token is the sum of the rewards to come.
            np.testing.assert_allclose(own.returns, rewards[k:].sum(), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(own.advantages, own.returns - t.values[k], rtol=1e-4, atol=1e-5)
    for rows in before[VLMColumns.ROWS]:
        for row in rows:
            assert (row.old_values[row.sampled] != 0).any()


def test_values_do_not_depend_on_how_they_were_batched(module, family):
    episodes = [episode_of(trajectory(family, n, group=f"g{n}"), index=n) for n in (1, 3, 2)]
    large, _ = run(module, episodes, micro_batch_tokens=10_000)
    small, _ = run(module, episodes, micro_batch_tokens=1, row_tokens=60)
    for a, b in zip(large[VLMColumns.TRAJECTORIES], small[VLMColumns.TRAJECTORIES], strict=True):
        for x, y in zip(a.values, b.values, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_a_cut_episode_bootstraps_with_the_value_of_its_last_state(module, family):
    cut = trajectory(family, 2, terminated=False)
    prompt = cut.turns[0].prompt
    with_prompt = episode_of(cut, final_prompt=prompt)
    before, _ = run(module, [with_prompt, episode_of(cut)])
    known, unknown = before[VLMColumns.TRAJECTORIES]
    # The first turn's first token is predicted by the same state, so it has the same value.
    assert known.bootstrap_value == pytest.approx(float(known.values[0][0]), abs=1e-5)
    assert known.bootstrap_value != 0.0
    assert unknown.bootstrap_value == 0.0


def test_a_terminated_episode_never_bootstraps(module, family):
    over = episode_of(trajectory(family, 1), final_prompt=trajectory(family, 1).turns[0].prompt)
    before, _ = run(module, [over])
    assert before[VLMColumns.TRAJECTORIES][0].bootstrap_value == 0.0


def test_driver_credit_is_used_as_it_came(module, family):
    episode = episode_of(trajectory(family, 2))
    credit = [
        TokenCredit(
            advantages=np.full(len(t.completion.token_ids), k + 1.0, np.float32),
            returns=np.zeros(len(t.completion.token_ids), np.float32),
            value_mask=np.zeros(len(t.completion.token_ids), bool),
        )
        for k, t in enumerate(to_trajectory(episode).turns)
    ]
    attach_credit(episode, credit)
    before, steps = run(module, [episode], credit="grpo")
    assert not before[VLMColumns.TRAJECTORIES][0].values
    ((columns, turns),) = list(steps)
    assert turns == 2
    rows = unpack(columns)
    assert [set(r.advantages[r.sampled]) for r in rows] == [{1.0}, {2.0}]
    assert not any(r.value_mask.any() for r in rows)


def test_rows_that_teach_nothing_are_left_out_only_if_asked(module, family):
    episodes = [credited(family, a, i) for i, a in enumerate((0.0, 1.0))]
    counts = {}
    for drop in (False, True):
        plan = UpdatePlan(losses=LOSSES, lr=0.1, drop_uninformative=drop)
        ((_, counts[drop]),) = list(run(module, episodes, credit="grpo", plan=plan)[1])
    assert counts == {False: 2, True: 1}


def credited(family, advantage, index):
    """An episode of one turn, each of whose tokens has this advantage."""
    episode = episode_of(trajectory(family, 1, group=f"g{index}"), index=index)
    attach_credit(episode, spread_over_tokens(to_trajectory(episode), np.array([advantage])))
    return episode


def learnt_from(steps):
    """The advantage of each row, in order."""
    return sorted(float(r.advantages[r.sampled][0]) for columns, _ in steps for r in unpack(columns))


@pytest.mark.parametrize(
    ("share", "left"),
    [
        (1.0, [-3.0, -0.5, 0.0, 1.0, 2.0]),
        (0.5, [-3.0, 1.0, 2.0]),  # rounded up
        (0.4, [-3.0, 2.0]),
        (0.01, [-3.0]),  # never nothing
    ],
)
def test_a_share_of_the_rows_is_learnt_from_those_of_the_largest_advantages(module, family, share, left):
    episodes = [credited(family, a, i) for i, a in enumerate((0.0, 2.0, -0.5, -3.0, 1.0))]
    plan = UpdatePlan(losses=LOSSES, lr=0.1, downsample=share)
    assert learnt_from(run(module, episodes, credit="grpo", plan=plan)[1]) == left


def test_an_advantage_that_is_no_number_is_learnt_from_first(module, family):
    """The step it is part of is then left out and counted."""
    episodes = [credited(family, a, i) for i, a in enumerate((1.0, float("nan"), 3.0, 2.0))]
    plan = UpdatePlan(losses=LOSSES, lr=0.1, downsample=0.5)
    kept = learnt_from(run(module, episodes, credit="grpo", plan=plan)[1])
    assert len(kept) == 2 and 3.0 in kept and any(np.isnan(kept))


def test_rows_that_tie_with_the_last_one_stay(module, family):
    episodes = [credited(family, a, i) for i, a in enumerate((1.0, -1.0, 1.0, -1.0, 0.5))]
    plan = UpdatePlan(losses=LOSSES, lr=0.1, downsample=0.2)
    assert learnt_from(run(module, episodes, credit="grpo", plan=plan)[1]) == [-1.0, -1.0, 1.0, 1.0]


def test_the_share_is_taken_of_the_rows_of_all_learners(module, family):
    own = [credited(family, a, i) for i, a in enumerate((0.1, 0.2, 5.0))]
    plan = UpdatePlan(losses=LOSSES, lr=0.1, downsample=0.5)
    others = [3.0, 4.0, 2.0]

    def gather(item):
        # Of the calls of one update the sizes of advantages are the one that is a list.
        return [item, others] if isinstance(item, list) else [item]

    _, steps = run(module, own, credit="grpo", plan=plan, gather=gather)
    assert learnt_from(steps) == [5.0]  # 5, 4 and 3 are the larger half of six; two of them are elsewhere


def test_every_epoch_reads_every_turn_once(module, family):
    episodes = [episode_of(trajectory(family, 3, group=f"g{i}"), index=i) for i in range(4)]
    plan = UpdatePlan(losses=LOSSES, lr=0.1, num_epochs=3, minibatch_size=5, seed=1)
    _, steps = run(module, episodes, plan=plan)
    seen = list(steps)
    assert len(seen) == len(steps) == 3 * round(12 / 5)
    for epoch in range(3):
        assert sum(turns for _, turns in seen[epoch * 2 : epoch * 2 + 2]) == 12


def test_two_learners_share_the_steps_of_one(module, family):
    episodes = [episode_of(trajectory(family, i + 1, group=f"g{i}"), index=i) for i in range(4)]
    plan = UpdatePlan(
        losses=LOSSES, lr=0.1, num_epochs=2, minibatch_size=3, seed=1, normalize_advantages=True
    )
    _, alone = run(module, episodes, plan=plan)
    parts = [[episodes[0], episodes[3]], [episodes[1], episodes[2]]]
    sent: list[list[object]] = []

    def record(part):
        log = []
        sent.append(log)

        def gather(item):
            log.append(item)
            return [item]

        run(module, part, plan=plan, gather=gather)

    for part in parts:
        record(part)
    together = []
    for part in parts:
        calls = iter(zip(*sent, strict=True))
        _, steps = run(module, part, plan=plan, gather=lambda item, calls=calls: list(next(calls)))
        together.append(list(steps))
    assert [len(t) for t in together] == [len(alone)] * 2
    for k, (columns, _) in enumerate(alone):
        # By value, rounded: summed in another order, the last digits differ.
        whole = sorted(tuple(np.round(r.advantages.astype(float), 4)) for r in unpack(columns))
        shared = sorted(
            tuple(np.round(r.advantages.astype(float), 4)) for t in together for r in unpack(t[k][0])
        )
        assert [len(r) for r in whole] == [len(r) for r in shared]
        np.testing.assert_allclose(np.concatenate(whole), np.concatenate(shared), atol=2e-4)


def test_whitened_advantages_have_mean_0_and_spread_1(module, family):
    episodes = [episode_of(trajectory(family, i + 1, group=f"g{i}"), index=i) for i in range(4)]
    plan = UpdatePlan(losses=LOSSES, lr=0.1, normalize_advantages=True)
    ((columns, _),) = list(run(module, episodes, plan=plan)[1])
    advantages = columns["advantages"][columns["loss_mask"]]
    assert advantages.mean() == pytest.approx(0.0, abs=1e-5)
    assert advantages.std() == pytest.approx(1.0, abs=1e-4)


def test_imitation_needs_no_credit(module, family):
    plan = UpdatePlan(losses=LossSettings(coefficients={"imitation": 1.0}), lr=0.1, expects_credit=False)
    before, steps = run(module, [episode_of(trajectory(family, 2))], plan=plan)
    assert not before[VLMColumns.TRAJECTORIES][0].values
    ((columns, turns),) = list(steps)
    assert turns == 2 and columns["loss_mask"].any()


def test_a_family_that_gains_nothing_by_packing_has_one_turn_a_row():
    sizes = {"size": "tiny", "hidden_size": 32, "num_layers": 2, "vision_hidden": 32, "vision_depth": 1}
    made = VLMRLModule(
        model_config={"family": "mllama", **sizes, "value_head": True},
        observation_space=None,
        action_space=None,
    )
    torch.nn.init.normal_(made.value_head.outer.weight)
    episodes = [episode_of(trajectory(made.family, n, group=f"g{n}"), index=n) for n in (1, 3)]
    before, steps = run(made, episodes)
    rows = [row for own in before[VLMColumns.ROWS] for row in own]
    [(batch, _)] = steps
    assert len(batch["segment_ids"]) == len(rows) > 1 and int(batch["segment_ids"].max()) == 1
    assert all((row.old_values[row.sampled] != 0).any() for row in rows)
