import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rllib_vlm.credit.gigpo import GiGPO
from rllib_vlm.credit.grpo import GRPO
from rllib_vlm.credit.reinforce_pp import ReinforcePlusPlus
from rllib_vlm.credit.rloo import RLOO
from rllib_vlm.errors import RLlibVLMError
from rllib_vlm.types import Completion, ParsedAction, Prompt, Trajectory, Turn

quick = settings(max_examples=50, deadline=None)
totals = st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=8)


def episode(*rewards, tokens=2, group="g", anchors=None):
    turns = tuple(
        Turn(
            prompt=Prompt(token_ids=np.arange(1, 4)),
            completion=Completion(
                token_ids=np.arange(tokens), logprobs=np.zeros(tokens, np.float32), policy_version=0,
                finish_reason="stop",
            ),
            parsed=ParsedAction(valid=True),
            reward=reward,
            anchor=anchor,
        )
        for reward, anchor in zip(rewards, anchors or [""] * len(rewards), strict=True)
    )  # fmt: skip
    return Trajectory(turns=turns, group=group, terminated=True, truncated=False, success=False)


def per_turn(credit):
    """One number per turn, after checking that the turn's tokens share it."""
    for turns in credit:
        for c in turns:
            assert np.ptp(c.advantages) == 0
            assert not c.returns.any() and not c.value_mask.any()
    return [[float(c.advantages[0]) for c in turns] for turns in credit]


@quick
@given(totals)
def test_grpo_is_its_definition(rewards):
    assume(np.ptp(rewards) > 1e-3)
    mean = sum(rewards) / len(rewards)
    std = (sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1)) ** 0.5
    # Half the reward on each of two turns: only the total counts.
    credit = per_turn(GRPO()([episode(r / 2, r / 2) for r in rewards]))
    plain = per_turn(GRPO(normalize_std=False)([episode(r) for r in rewards]))
    for r, normalised, centred in zip(rewards, credit, plain, strict=True):
        assert normalised == pytest.approx([(r - mean) / (std + 1e-6)] * 2, rel=1e-4, abs=1e-5)
        assert centred == pytest.approx([r - mean], rel=1e-4, abs=1e-5)


@quick
@given(totals)
def test_rloo_leaves_itself_out(rewards):
    assume(np.ptp(rewards) > 1e-3)
    credit = per_turn(RLOO()([episode(r) for r in rewards]))
    for i, (advantage,) in enumerate(credit):
        others = [r for j, r in enumerate(rewards) if j != i]
        assert advantage == pytest.approx(rewards[i] - sum(others) / len(others), rel=1e-4, abs=1e-4)


@quick
@given(totals, st.floats(-5, 5), st.floats(0.1, 10))
def test_grpo_ignores_a_shift_and_a_positive_scale(rewards, shift, scale):
    assume(np.ptp(rewards) > 0.1)
    plain = per_turn(GRPO()([episode(r) for r in rewards]))
    moved = per_turn(GRPO()([episode(scale * r + shift) for r in rewards]))
    np.testing.assert_allclose(plain, moved, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "estimator", [GRPO(), GRPO(discount=0.9), RLOO(), GiGPO(), ReinforcePlusPlus(baseline=True)], ids=repr
)
@quick
@given(data=st.data())
def test_credit_follows_its_episode_wherever_it_stands_in_the_group(estimator, data):
    turns = st.lists(st.tuples(st.integers(-5, 5), st.sampled_from("abc")), min_size=1, max_size=4)
    members = data.draw(st.lists(turns, min_size=2, max_size=5))
    order = data.draw(st.permutations(range(len(members))))
    group = [episode(*[float(r) for r, _ in own], anchors=[a for _, a in own]) for own in members]
    plain, permuted = per_turn(estimator(group)), per_turn(estimator([group[i] for i in order]))
    for i, found in zip(order, permuted, strict=True):
        assert found == pytest.approx(plain[i], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    "estimator", [GRPO(), GRPO(normalize_std=False), GRPO(discount=0.9), RLOO(), GiGPO(discount=1.0)]
)
def test_constant_rewards_give_exactly_no_credit(estimator):
    # 0.1 added three times and 0.3 differ in the last bit, which a division by the spread would blow up.
    group = [episode(0.1, 0.1, 0.1), episode(0.1, 0.1, 0.1)]
    if getattr(estimator, "discount", None) is None:
        group.append(episode(0.3))
    for turns in per_turn(estimator(group)):
        assert turns == [0.0] * len(turns)
    assert estimator.figures.pop() == {
        "num_groups": 1,
        "num_groups_of_one": 0,
        "num_groups_without_spread": 1,
    }


@pytest.mark.parametrize("estimator", [GRPO(), GRPO(discount=1.0), RLOO()])
def test_a_group_of_one_is_counted_and_gets_nothing(estimator):
    assert per_turn(estimator([episode(1.0, 3.0)])) == [[0.0, 0.0]]
    assert estimator.figures.pop() == {
        "num_groups": 1,
        "num_groups_of_one": 1,
        "num_groups_without_spread": 0,
    }
    assert estimator.figures.pop()["num_groups"] == 0


def test_reward_to_go_by_hand():
    # Rewards-to-go at discount 0.5: (1 + 1, 2) and (0 + 2, 4); a third member ends after one turn with 5.
    group = [episode(1.0, 2.0), episode(0.0, 4.0), episode(5.0)]
    credit = per_turn(GRPO(discount=0.5, normalize_std=False)(group))
    assert credit == [pytest.approx([2 - 3, 2 - 3]), pytest.approx([2 - 3, 4 - 3]), pytest.approx([5 - 3])]


def test_reward_to_go_of_the_last_survivor_uses_the_whole_group():
    group = [episode(0.0, 6.0), episode(3.0)]
    credit = per_turn(GRPO(discount=0.0, normalize_std=False)(group))
    assert credit == [pytest.approx([-1.5, 6 - 3]), pytest.approx([1.5])]


def test_reward_to_go_is_scaled_by_one_number_per_group():
    group = [episode(1.0, 2.0), episode(0.0, 4.0), episode(5.0)]
    plain = np.concatenate(per_turn(GRPO(discount=0.5, normalize_std=False)(group)))
    scaled = np.concatenate(per_turn(GRPO(discount=0.5)(group)))
    np.testing.assert_allclose(scaled, plain / np.sqrt(np.mean(plain**2)), rtol=1e-4)


def test_reward_to_go_gives_no_credit_for_the_past():
    early = GRPO(discount=1.0, normalize_std=False)([episode(1.0, 0.0), episode(0.0, 0.0)])
    assert per_turn(early) == [pytest.approx([0.5, 0.0]), pytest.approx([-0.5, 0.0])]


@pytest.mark.parametrize("estimator", [GRPO(), RLOO(), GiGPO(), ReinforcePlusPlus()])
def test_mixed_groups_are_refused(estimator):
    with pytest.raises(RLlibVLMError, match="2 groups"):
        estimator([episode(1.0, group="a"), episode(2.0, group="b")])


def test_bad_arguments():
    with pytest.raises(RLlibVLMError, match="epsilon"):
        GRPO(epsilon=-1.0)
    with pytest.raises(RLlibVLMError, match="discount"):
        GRPO(discount=1.2)


@quick
@given(st.lists(st.lists(st.tuples(st.floats(-5, 5, width=32), st.sampled_from("abc")), min_size=1, max_size=5),
                min_size=2, max_size=4), st.floats(0, 1), st.floats(0, 2))  # fmt: skip
def test_gigpo_is_its_definition(turns, discount, weight):
    group = [episode(*[r for r, _ in t], anchors=[a for _, a in t]) for t in turns]
    found = per_turn(GiGPO(discount=discount, step_weight=weight, normalize_std=False)(group))
    totals = [sum(r for r, _ in t) for t in turns]
    togo = {
        (i, n): sum(discount ** (m - n) * t[m][0] for m in range(n, len(t)))
        for i, t in enumerate(turns)
        for n in range(len(t))
    }
    for i, t in enumerate(turns):
        for n, (_, anchor) in enumerate(t):
            same = [togo[j, m] for j, u in enumerate(turns) for m in range(len(u)) if u[m][1] == anchor]
            expected = totals[i] - sum(totals) / len(totals)
            expected += weight * (togo[i, n] - sum(same) / len(same))
            assert found[i][n] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_gigpo_compares_turns_that_began_in_the_same_state():
    # Both reach "door"; the one that goes on to success there is better by that turn alone.
    group = [episode(0.0, 1.0, anchors=("start", "door")), episode(0.0, 0.0, anchors=("start", "door"))]
    episodes_only = per_turn(GiGPO(step_weight=0.0, normalize_std=False)(group))
    both = per_turn(GiGPO(discount=0.5, normalize_std=False)(group))
    assert episodes_only == [[0.5, 0.5], [-0.5, -0.5]]
    assert both == [[0.75, 1.0], [-0.75, -1.0]]
    unknown = [episode(0.0, 1.0), episode(0.0, 0.0)]  # no anchors: nothing to compare turns by
    assert per_turn(GiGPO(normalize_std=False)(unknown)) == episodes_only
    with pytest.raises(RLlibVLMError, match="step_weight"):
        GiGPO(step_weight=-1.0)


@quick
@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=6), st.floats(0, 1))
def test_reinforce_pp_is_the_reward_to_go(rewards, discount):
    (found,) = per_turn(ReinforcePlusPlus(discount=discount)([episode(*rewards)]))
    for n, value in enumerate(found):
        expected = sum(discount ** (m - n) * r for m, r in enumerate(rewards) if m >= n)
        assert value == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_the_baseline_of_reinforce_pp_is_the_mean_of_the_group():
    estimator = ReinforcePlusPlus(baseline=True)
    assert per_turn(estimator([episode(1.0, 2.0), episode(5.0)])) == [[-1.0, -2.0], [1.0]]
    assert estimator.figures.pop()["num_groups"] == 1
