"""What every row of registry.CREDIT promises; a new estimator is tested by its row."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from rllib_vlm.batching.mismatch import Correction
from rllib_vlm.credit.bilevel_gae import BiLevelGAE
from rllib_vlm.credit.gae import TokenGAE
from rllib_vlm.losses.kl import KLEstimator
from rllib_vlm.losses.policy import PolicyLoss
from rllib_vlm.losses.reduce import Reduction
from rllib_vlm.registry import names, resolve
from rllib_vlm.types import Completion, ParsedAction, Prompt, Trajectory, Turn


def make_trajectory(lengths, rewards, *, group="g", terminated=True, bootstrap=0.0, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    turns = tuple(
        Turn(
            prompt=Prompt(token_ids=np.arange(1, 4)),
            completion=Completion(
                token_ids=np.arange(n),
                logprobs=np.zeros(n, np.float32),
                policy_version=0,
                finish_reason="stop",
            ),
            parsed=ParsedAction(valid=True),
            reward=reward,
            state={"to_go": float(k), "luck": float(rng.normal())},
        )
        for k, (n, reward) in enumerate(zip(lengths, rewards, strict=True))
    )
    return Trajectory(
        turns=turns,
        group=group,
        terminated=terminated,
        truncated=not terminated,
        success=False,
        values=tuple((rng.normal(size=n) + shift).astype(np.float32) for n in lengths),
        bootstrap_value=bootstrap,
    )


def group_of_three():
    return [
        make_trajectory((3, 2, 4), (0.5, 0.0, 1.0), seed=1),
        make_trajectory((1, 5), (0.0, -1.0), seed=2, terminated=False, bootstrap=0.7),
        make_trajectory((2, 2, 1, 3), (0.1, 0.2, 0.3, 2.0), seed=3),
    ]


@pytest.fixture(params=names("credit"))
def estimator(request):
    return resolve("credit", request.param)()


def test_stage_is_known(estimator):
    assert type(estimator).stage in ("group", "update", "learner")


def test_one_credit_per_turn_and_token_in_float32(estimator):
    group = group_of_three()
    credit = estimator(group)
    assert [len(c) for c in credit] == [len(t.turns) for t in group]
    for trajectory, per_turn in zip(group, credit, strict=True):
        for turn, c in zip(trajectory.turns, per_turn, strict=True):
            shape = turn.completion.token_ids.shape
            assert c.advantages.shape == c.returns.shape == shape
            assert c.advantages.dtype == c.returns.dtype == np.float32
            assert np.isfinite(c.advantages).all() and np.isfinite(c.returns).all()
            assert c.value_mask is None or (c.value_mask.shape == shape and c.value_mask.dtype == bool)


def test_credit_is_not_all_zero_where_rewards_differ(estimator):
    assert any(np.any(c.advantages != 0) for per_turn in estimator(group_of_three()) for c in per_turn)


def test_permuted_members_get_permuted_credit(estimator):
    group = group_of_three()
    order = [2, 0, 1]
    plain, permuted = estimator(group), estimator([group[i] for i in order])
    for position, source in enumerate(order):
        for a, b in zip(permuted[position], plain[source], strict=True):
            np.testing.assert_allclose(a.advantages, b.advantages, rtol=1e-6, atol=1e-7)
            np.testing.assert_allclose(a.returns, b.returns, rtol=1e-6, atol=1e-7)


def test_inputs_are_left_alone(estimator):
    group = group_of_three()
    before = [[v.copy() for v in t.values] for t in group]
    estimator(group)
    for trajectory, values in zip(group, before, strict=True):
        for now, then in zip(trajectory.values, values, strict=True):
            np.testing.assert_array_equal(now, then)


def test_empty_turns_and_no_trajectories(estimator):
    assert estimator([]) == []
    group = [make_trajectory((2, 0, 3), (0.5, 1.0, 0.0)), make_trajectory((0,), (3.0,))]
    credit = estimator(group)
    assert [[len(c.advantages) for c in per_turn] for per_turn in credit] == [[2, 0, 3], [0]]


def test_a_larger_last_reward_never_lowers_the_credit_of_the_last_turn(estimator):
    lengths = (2, 3)
    others = [make_trajectory((2,), (0.3,), seed=5), make_trajectory((4,), (1.0,), seed=6)]
    low = estimator([make_trajectory(lengths, (0.0, 0.0)), *others])[0][-1].advantages
    high = estimator([make_trajectory(lengths, (0.0, 2.0)), *others])[0][-1].advantages
    assert np.all(high > low)


def test_rewards_of_tokens_count_in_their_turn(estimator):
    """A KL in the reward. Within a turn, estimators over tokens place them as they like."""
    if isinstance(estimator, TokenGAE | BiLevelGAE):
        pytest.skip("its decisions are tokens")
    rng = np.random.default_rng(4)
    plain, charged, whole = [], [], []
    for trajectory in group_of_three():
        lengths = [len(turn.completion.token_ids) for turn in trajectory.turns]
        rewards = tuple(rng.normal(size=n).astype(np.float32) for n in lengths)
        turns = tuple(
            replace(turn, reward=turn.reward + float(own.astype(np.float64).sum()))
            for turn, own in zip(trajectory.turns, rewards, strict=True)
        )
        plain.append(trajectory)
        charged.append(replace(trajectory, token_rewards=rewards))
        whole.append(replace(trajectory, turns=turns))
        assert charged[-1].total_reward == pytest.approx(whole[-1].total_reward)
    differs = False
    for a, b, c in zip(estimator(charged), estimator(whole), estimator(plain), strict=True):
        for x, y, z in zip(a, b, c, strict=True):
            np.testing.assert_allclose(x.advantages, y.advantages, rtol=1e-5, atol=1e-6)
            differs = differs or bool(np.any(np.abs(x.advantages - z.advantages) > 1e-3))
    assert differs


def test_the_documentation_has_a_full_row_for_each():
    """Name, formula, settings, source and when to use it."""
    page = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text()
    forms = (*get_args(PolicyLoss), *get_args(KLEstimator), *get_args(Reduction), *get_args(Correction))
    for name in (*names("credit"), *forms):
        rows = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        assert len(rows) == 1, f"docs/algorithms.md has {len(rows)} rows for {name!r}"
        cells = [cell.strip() for cell in rows[0].replace("\\|", "").strip("|").split("|")]
        assert len(cells) == 5 and cells[1] and cells[4], rows[0]
