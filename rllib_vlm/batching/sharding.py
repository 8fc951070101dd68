"""Sharding: whole groups to learners, about the same number of tokens each."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from rllib_vlm.errors import RLlibVLMError
from rllib_vlm.types import Trajectory


def trajectory_tokens(trajectory: Trajectory) -> int:
    """Tokens a learner reads for a trajectory at most: prompts and completions of all its turns."""
    return sum(len(t.prompt.token_ids) + len(t.completion.token_ids) for t in trajectory.turns)


def shard_groups(groups: Sequence[str], tokens: Sequence[int], num_shards: int) -> list[list[int]]:
    """Indices of the items of each shard; an item's siblings are always in the same shard.

    The largest group goes first, each to the shard with the fewest tokens so far (then the fewest
    groups, then the lowest number): at most 4/3 of the best possible largest shard, and the same answer
    on every machine. Inside a shard the order of the items is kept.

    Shards with equal tokens may still pack into different numbers of rows, and learners that train
    together must take equally many steps: after packing, agree on the largest B and fill up with
    `packing.pad_batch`, whose rows weigh nothing. Normalisers must then count real tokens or sequences
    over all learners (`losses.reduce`), not rows.

    Args:
        groups: [n] the group of each item. Where siblings need not stay together, give each its own name.
        tokens: [n] the cost of each item, for example `trajectory_tokens`.
        num_shards: number of learners.

    Raises:
        RLlibVLMError: fewer groups than shards: a learner without data would make the others wait for ever.

    Source of the bound: Graham, "Bounds on Multiprocessing Timing Anomalies" (1969), longest processing
    time first.
    """
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    if len(members) < num_shards:
        raise RLlibVLMError(
            f"{len(members)} groups cannot feed {num_shards} learners. "
            f"Collect at least {num_shards} groups per update, or use {max(len(members), 1)} learner(s) at most."
        )
    costs = {group: sum(tokens[i] for i in indices) for group, indices in members.items()}
    # Ties are broken by first appearance (sorted is stable), never by hash or name.
    largest_first = sorted(members, key=lambda group: -costs[group])
    load = [(0, 0, shard) for shard in range(num_shards)]  # tokens, groups, shard
    shards: list[list[int]] = [[] for _ in range(num_shards)]
    for group in largest_first:
        cost, count, shard = heapq.heappop(load)
        shards[shard].extend(members[group])
        heapq.heappush(load, (cost + costs[group], count + 1, shard))
    return [sorted(shard) for shard in shards]
