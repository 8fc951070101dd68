"""The GAE estimators against their definitions as sums over all later decisions, O(n^2)."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_vlm.credit.bilevel_gae import BiLevelGAE
from rllib_vlm.credit.gae import TokenGAE
from rllib_vlm.credit.turn_gae import TurnGAE
from rllib_vlm.errors import RLlibVLMError
from rllib_vlm.types import Completion, ParsedAction, Prompt, Trajectory, Turn

quick = settings(max_examples=40, deadline=None)
numbers = st.floats(-5, 5, width=32)
fractions = st.floats(0, 1)


def make_trajectory(lengths, rewards, values, *, terminated=True, bootstrap=0.0):
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
        )
        for n, reward in zip(lengths, rewards, strict=True)
    )
    ends = np.cumsum(lengths)[:-1]
    return Trajectory(
        turns=turns,
        group="g",
        terminated=terminated,
        truncated=not terminated,
        success=False,
        values=tuple(np.split(np.asarray(values, np.float32), ends)),
        bootstrap_value=bootstrap,
    )


@st.composite
def trajectories(draw):
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    total = sum(lengths)
    return make_trajectory(
        lengths,
        draw(st.lists(numbers, min_size=len(lengths), max_size=len(lengths))),
        draw(st.lists(numbers, min_size=total, max_size=total)),
        terminated=draw(st.booleans()),
        bootstrap=draw(numbers),
    )


def defined_gae(rewards, values, bootstrap, gamma, lam):
    n = len(rewards)
    following = [*values[1:], bootstrap]
    deltas = [rewards[k] + gamma * following[k] - values[k] for k in range(n)]
    return np.array([sum((gamma * lam) ** (j - k) * deltas[j] for j in range(k, n)) for k in range(n)])


def end_value(trajectory):
    return 0.0 if trajectory.terminated else trajectory.bootstrap_value


def joined(credit, name):
    return np.concatenate([getattr(c, name) for c in credit])


@quick
@given(trajectories(), fractions, fractions)
def test_token_gae_is_its_definition(trajectory, gamma, lam):
    (credit,) = TokenGAE(gamma=gamma, lam=lam)([trajectory])
    values = np.concatenate(trajectory.values).astype(float)
    rewards = []
    for turn in trajectory.turns:
        rewards += [0.0] * (len(turn.completion.token_ids) - 1) + [turn.reward]
    expected = defined_gae(rewards, values, end_value(trajectory), gamma, lam)
    np.testing.assert_allclose(joined(credit, "advantages"), expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(joined(credit, "returns"), expected + values, rtol=1e-5, atol=1e-4)


@quick
@given(trajectories(), fractions, fractions)
def test_turn_gae_is_its_definition_and_shared_by_the_turn(trajectory, gamma, lam):
    (credit,) = TurnGAE(gamma=gamma, lam=lam)([trajectory])
    values = [float(v[0]) for v in trajectory.values]
    rewards = [turn.reward for turn in trajectory.turns]
    expected = defined_gae(rewards, values, end_value(trajectory), gamma, lam)
    for n, c in enumerate(credit):
        np.testing.assert_allclose(c.advantages, expected[n], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(c.returns[0], expected[n] + values[n], rtol=1e-5, atol=1e-4)
        assert c.value_mask.tolist() == [True] + [False] * (len(c.returns) - 1)
        assert not c.returns[1:].any()


@quick
@given(trajectories(), fractions, fractions, fractions)
def test_bilevel_gae_is_its_definition(trajectory, gamma, lam, high):
    (credit,) = BiLevelGAE(gamma=gamma, lam=lam, high_level_gamma=high)([trajectory])
    values = [v.astype(float) for v in trajectory.values]
    ends = [v[-1] for v in values]
    rewards = [turn.reward for turn in trajectory.turns]
    turn_returns = defined_gae(rewards, ends, end_value(trajectory), high, lam) + ends
    for c, v, turn_return in zip(credit, values, turn_returns, strict=True):
        inside = defined_gae([0.0] * (len(v) - 1) + [turn_return], v, 0.0, gamma, lam)
        np.testing.assert_allclose(c.advantages, inside, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(c.returns, inside + v, rtol=1e-5, atol=1e-4)


def test_bilevel_by_hand():
    # Turns of 2 and 1 tokens, values (1, 2 | 3), rewards 0 and 10, both gammas 0.5, lam 1.
    trajectory = make_trajectory((2, 1), (0.0, 10.0), (1.0, 2.0, 3.0))
    (credit,) = BiLevelGAE(gamma=0.5, lam=1.0, high_level_gamma=0.5)([trajectory])
    # Turn returns: 10 for the last, 0 + 0.5 * 10 = 5 for the first; inside: token returns 2.5 and 5.
    np.testing.assert_allclose(joined(credit, "returns"), [2.5, 5.0, 10.0], atol=1e-6)
    np.testing.assert_allclose(joined(credit, "advantages"), [1.5, 3.0, 7.0], atol=1e-6)


def test_bilevel_sees_turns_without_reward():
    quiet = make_trajectory((2, 2), (0.0, 1.0), (0.0, 1.0, 0.0, 0.0))
    (credit,) = BiLevelGAE(gamma=1.0, lam=0.0, high_level_gamma=1.0)([quiet])
    # lam = 0: the first turn's return is r + V of the next turn's end = 0, although its reward is 0.
    np.testing.assert_allclose(credit[0].advantages, [1.0, -1.0], atol=1e-6)


@quick
@given(trajectories())
def test_undiscounted_gae_is_return_minus_value(trajectory):
    (credit,) = TokenGAE(gamma=1.0, lam=1.0)([trajectory])
    (by_turn,) = TurnGAE(gamma=1.0, lam=1.0)([trajectory])
    after = end_value(trajectory)
    for n in reversed(range(len(credit))):
        after += trajectory.turns[n].reward
        np.testing.assert_allclose(credit[n].advantages, after - trajectory.values[n], rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(
            by_turn[n].advantages, after - trajectory.values[n][0], rtol=1e-5, atol=1e-4
        )


@pytest.mark.parametrize("estimator", [TokenGAE(), TurnGAE(), BiLevelGAE()])
@quick
@given(st.lists(numbers, min_size=3, max_size=3), st.lists(numbers, min_size=3, max_size=3), numbers)
def test_linear_in_reward_and_value(estimator, a, b, factor):
    lengths, va, vb = (2, 1, 3), np.linspace(-1, 1, 6), np.linspace(2, -3, 6)
    one = make_trajectory(lengths, a, va, terminated=False, bootstrap=1.0)
    two = make_trajectory(lengths, b, vb, terminated=False, bootstrap=-2.0)
    both = make_trajectory(
        lengths, np.array(a) + factor * np.array(b), va + factor * vb, terminated=False,
        bootstrap=1.0 - 2.0 * factor,
    )  # fmt: skip
    x, y, z = (joined(c, "advantages") for c in estimator([one, two, both]))
    np.testing.assert_allclose(z, x + factor * y, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("estimator", [TokenGAE(), TurnGAE(), BiLevelGAE()])
def test_only_an_unfinished_episode_bootstraps(estimator):
    finished, other, cut, cut_other = (
        make_trajectory((2, 2), (0.0, 0.0), np.zeros(4), terminated=end, bootstrap=value)
        for end, value in ((True, 5.0), (True, 0.0), (False, 5.0), (False, 0.0))
    )
    a, b, c, d = (joined(x, "advantages") for x in estimator([finished, other, cut, cut_other]))
    np.testing.assert_array_equal(a, b)
    assert np.all(c > d)


def test_reward_of_an_aborted_turn_counts_for_the_turn_before():
    with_gap = make_trajectory((2, 0, 1), (1.0, 4.0, 0.5), (0.1, 0.2, 0.3))
    merged = make_trajectory((2, 1), (5.0, 0.5), (0.1, 0.2, 0.3))
    for estimator in (TokenGAE(), TurnGAE(), BiLevelGAE()):
        gap, plain = estimator([with_gap, merged])
        np.testing.assert_array_equal(joined(gap, "advantages"), joined(plain, "advantages"))


def test_missing_values_say_the_way_out():
    trajectory = make_trajectory((2,), (1.0,), (0.0, 0.0))
    bare = Trajectory(turns=trajectory.turns, group="g", terminated=True, truncated=False, success=False)
    with pytest.raises(RLlibVLMError, match=r"a value per sampled token.*grpo"):
        TokenGAE()([bare])


@pytest.mark.parametrize("build", [lambda: TokenGAE(gamma=1.5), lambda: TurnGAE(lam=-0.1),
                                   lambda: BiLevelGAE(high_level_lam=2.0)])  # fmt: skip
def test_fractions_are_checked(build):
    with pytest.raises(RLlibVLMError, match=r"must be in \[0, 1\]"):
        build()


@st.composite
def charged(draw):
    trajectory = draw(trajectories())
    penalties = tuple(
        np.asarray(draw(st.lists(numbers, min_size=len(v), max_size=len(v))), np.float32)
        for v in trajectory.values
    )
    return replace(trajectory, token_rewards=penalties)


@quick
@given(charged(), fractions, fractions, fractions)
def test_rewards_of_tokens_count_where_they_fall(trajectory, gamma, lam, high):
    penalties = [p.astype(float) for p in trajectory.token_rewards]
    rewards = [turn.reward for turn in trajectory.turns]
    values = [v.astype(float) for v in trajectory.values]
    end = end_value(trajectory)

    (token,) = TokenGAE(gamma=gamma, lam=lam)([trajectory])
    per_token = [p + np.eye(len(p))[-1] * r for p, r in zip(penalties, rewards, strict=True)]
    expected = defined_gae(np.concatenate(per_token), np.concatenate(values), end, gamma, lam)
    np.testing.assert_allclose(joined(token, "advantages"), expected, rtol=1e-5, atol=1e-4)

    (turn,) = TurnGAE(gamma=gamma, lam=lam)([trajectory])
    together = [r + p.sum() for r, p in zip(rewards, penalties, strict=True)]
    expected = defined_gae(together, [v[0] for v in values], end, gamma, lam)
    np.testing.assert_allclose([c.advantages[0] for c in turn], expected, rtol=1e-5, atol=1e-4)

    (bilevel,) = BiLevelGAE(gamma=gamma, lam=lam, high_level_gamma=high)([trajectory])
    ends = [v[-1] for v in values]
    turn_returns = defined_gae(together, ends, end, high, lam) + ends
    for c, v, p, total in zip(bilevel, values, penalties, turn_returns, strict=True):
        inside = p + np.eye(len(p))[-1] * (total - p.sum())
        np.testing.assert_allclose(
            c.advantages, defined_gae(inside, v, 0.0, gamma, lam), rtol=1e-5, atol=1e-4
        )
