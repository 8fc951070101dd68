import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_vlm.batching.sharding import shard_groups
from rllib_vlm.errors import RLlibVLMError

items = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 100)), min_size=1, max_size=40)


@settings(max_examples=100, deadline=None)
@given(items, st.integers(1, 4))
def test_groups_stay_whole_nothing_is_lost_and_loads_are_balanced(pairs, num_shards):
    groups, tokens = [g for g, _ in pairs], [t for _, t in pairs]
    if len(set(groups)) < num_shards:
        with pytest.raises(RLlibVLMError, match="Collect at least"):
            shard_groups(groups, tokens, num_shards)
        return
    shards = shard_groups(groups, tokens, num_shards)
    assert sorted(i for shard in shards for i in shard) == list(range(len(pairs)))
    assert all(shard == sorted(shard) and shard for shard in shards)
    for group in set(groups):
        assert sum(any(groups[i] == group for i in shard) for shard in shards) == 1
    loads = [sum(tokens[i] for i in shard) for shard in shards]
    largest = max(sum(t for g, t in pairs if g == group) for group in set(groups))
    assert max(loads) - min(loads) <= largest
    assert shards == shard_groups(groups, tokens, num_shards)


def test_by_hand():
    # Costs a 6, b 5, c 4, d 3: a | b, then c to b's shard is 9 against 6 + 3.
    assert shard_groups(list("abcda"), [3, 5, 4, 3, 3], 2) == [[0, 3, 4], [1, 2]]


def test_group_names_do_not_matter():
    a = shard_groups(["x", "y", "z"], [2, 2, 2], 2)
    b = shard_groups(["z", "x", "y"], [2, 2, 2], 2)
    assert a == b == [[0, 2], [1]]
