"""GAE with a baseline that is fitted to the update."""

from dataclasses import replace

import numpy as np
import pytest

from rllib_vlm.credit.episode import generalized_advantages
from rllib_vlm.credit.fitted_gae import FittedGAE
from rllib_vlm.errors import RLlibVLMError
from rllib_vlm.types import Completion, ParsedAction, Prompt, Trajectory, Turn


def turn(reward, **state):
    completion = Completion(
        token_ids=np.arange(2), logprobs=np.zeros(2, np.float32), policy_version=0, finish_reason="stop"
    )
    prompt = Prompt(token_ids=np.arange(3))
    return Turn(
        prompt=prompt, completion=completion, parsed=ParsedAction(valid=True), reward=reward, state=state
    )


def episode(turns, group="g"):
    return Trajectory(turns=tuple(turns), group=group, terminated=True, truncated=False, success=False)


def walks(count, rng, noise=0.0):
    """Each of 1 to 8 metres is paid for when it is walked: what is to come is what is left to go."""
    found = []
    for i in range(count):
        metres = int(rng.integers(1, 9))
        turns = [
            turn(1.0 + noise * rng.normal(), to_go=float(m), junk=float(rng.normal()))
            for m in range(metres, 0, -1)
        ]
        found.append(episode(turns, f"g{i}"))
    return found


def advantages(credit):
    return np.concatenate([c.advantages[:1] for own in credit for c in own])


def test_what_the_state_foretells_gives_no_credit():
    rng = np.random.default_rng(0)
    estimator = FittedGAE(gamma=1.0, lam=0.9, ridge=1e-3)
    credit = estimator(walks(80, rng))
    assert np.abs(advantages(credit)).max() < 0.2
    assert estimator.figures.pop()["baseline_explained_variance"] > 0.99
    assert estimator.figures.pop()["baseline_explained_variance"] == 0.0


def test_a_surprise_is_credited_to_its_turn_and_what_led_there():
    rng = np.random.default_rng(1)
    group = walks(80, rng)
    lucky = group[0]
    while len(lucky.turns) < 4:
        group = group[1:]
        lucky = group[0]
    turns = list(lucky.turns)
    turns[2] = replace(turns[2], reward=6.0)
    group[0] = replace(lucky, turns=tuple(turns))
    own = FittedGAE(gamma=1.0, lam=0.5, ridge=1.0)(group)[0]
    got = [float(c.advantages[0]) for c in own]
    assert got[2] == pytest.approx(5.0, abs=0.5)
    assert got[1] == pytest.approx(2.5, abs=0.5)
    assert got[0] == pytest.approx(1.25, abs=0.5)
    assert abs(got[3]) < 0.5


def test_an_episode_is_not_valued_by_its_own_outcome():
    rng = np.random.default_rng(2)
    group = walks(24, rng)
    turns = group[0].turns
    estimator = FittedGAE(gamma=1.0, lam=1.0)
    before = float(estimator(group)[0][0].advantages[0])
    group[0] = replace(group[0], turns=(replace(turns[0], reward=turns[0].reward + 100.0), *turns[1:]))
    after = float(estimator(group)[0][0].advantages[0])
    assert after - before == pytest.approx(100.0, abs=1.0)  # other folds may be dealt otherwise


def test_the_values_are_those_of_a_ridge_regression():
    rng = np.random.default_rng(3)
    first, second = walks(2, rng)
    estimator = FittedGAE(gamma=0.9, lam=0.8, ridge=0.5, folds=2)
    credit = estimator([first, second])

    def numbers(t):
        return [[n, s.state["junk"], s.state["to_go"]] for n, s in enumerate(t.turns)]

    x = np.array(numbers(first) + numbers(second))
    x = (x - x.mean(0)) / np.where(x.std(0) > 1e-9, x.std(0), 1.0)
    pairs = np.stack([x[:, i] * x[:, j] for i in range(3) for j in range(i, 3)], 1)
    x = np.concatenate([x, pairs - pairs.mean(0)], 1)
    split = len(first.turns)
    togo = [sum(0.9 ** (m - n) for m in range(n, len(second.turns))) for n in range(len(second.turns))]
    g, other = np.array(togo), x[split:]
    w = np.linalg.inv(other.T @ other + 0.5 * np.eye(x.shape[1])) @ other.T @ (g - g.mean())
    values = np.clip(g.mean() + x[:split] @ w, g.min(), g.max())
    expected = generalized_advantages(np.ones(split), values, 0.0, gamma=0.9, lam=0.8)
    np.testing.assert_allclose(
        [c.advantages[0] for c in credit[0]], expected.astype(np.float32), rtol=1e-4, atol=1e-5
    )


def test_one_episode_alone_gets_its_rewards_to_go():
    credit = FittedGAE(gamma=0.5, lam=1.0)([episode([turn(1.0, a=0.0), turn(2.0, a=1.0)])])
    assert [float(c.advantages[0]) for c in credit[0]] == [2.0, 2.0]


@pytest.mark.parametrize("states", [({}, {}), ({"a": 1.0}, {}), ({"a": 1.0}, {"b": 1.0})])
def test_a_simulator_that_tells_no_state_is_named_with_the_way_out(states):
    group = [episode([turn(0.0, **state) for state in states])]
    with pytest.raises(RLlibVLMError, match=r"info\['state'\].*grpo"):
        FittedGAE()(group)


@pytest.mark.parametrize("options", [{"ridge": 0.0}, {"folds": 1}, {"gamma": 1.5}, {"lam": -0.1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(RLlibVLMError, match=next(iter(options))):
        FittedGAE(**options)
