"""Findings about what the updates were given to learn from."""

from __future__ import annotations

import numpy as np

from rllib_vlm.diagnosis.curves import (
    CRASHES,
    EPISODES,
    GRAD_NORM,
    GROUPS,
    GROUPS_ALIKE,
    GROUPS_DROPPED,
    GROUPS_OF_ONE,
    KL,
    POLICY_LOSS,
    REPLACED_GROUPS,
    SKIPPED_STEPS,
    TIMEOUTS,
    TOKENS,
    Curves,
    total,
)
from rllib_vlm.diagnosis.finding import Seen

OFTEN = 0.1  # of updates or groups: a tenth of the time lost is worth a change
MOST = 0.5  # of groups: more is thrown away than learnt from
FAILURES = 0.01  # of episodes; a simulator that works has none


def masked_batch(updates: Curves) -> Seen | None:
    """A policy loss of 0 alone is no sign: equal answers of opposite advantages sum to it and teach all the same."""
    empty = updates[TOKENS] == 0
    no_gradient = (updates[GRAD_NORM] == 0) & ~(updates[SKIPPED_STEPS] > 0)
    masked = (updates[POLICY_LOSS] == 0) & np.isnan(updates[KL])  # the KL is of the tokens that count
    where = empty | no_gradient | masked
    if not len(where) or where.mean() < OFTEN:
        return None
    kinds = (
        ("read no tokens", empty),
        ("masked out all they read", masked & ~empty),
        ("had no gradient", no_gradient & ~empty & ~masked),
    )
    said = ", ".join(f"{kind.sum()} {what}" for what, kind in kinds if kind.any())
    return Seen(f"{where.sum()} of {len(updates)} updates taught the policy nothing: {said}.", where)


def groups_of_one(updates: Curves) -> Seen | None:
    alone, groups = updates[GROUPS_OF_ONE], updates[GROUPS]
    if not total(alone) > OFTEN * total(groups):
        return None
    return Seen(
        f"{total(alone):.0f} of {total(groups):.0f} groups had a single episode: with a credit that compares "
        "siblings, its advantage is 0.",
        alone > 0,
    )


def groups_alike(updates: Curves) -> Seen | None:
    """With dynamic sampling, groups without spread are dropped before they are counted as such."""
    dropped = np.nan_to_num(updates[GROUPS_DROPPED])
    alike, groups = updates[GROUPS_ALIKE] + dropped, updates[GROUPS] + dropped
    if not total(alike) > MOST * total(groups):
        return None
    return Seen(
        f"in {total(alike):.0f} of {total(groups):.0f} groups ({total(alike) / total(groups):.0%}) all episodes "
        "earned the same, so that they taught nothing: their tasks are too easy or too hard.",
        alike > MOST * groups,
    )


def failing_simulators(updates: Curves) -> Seen | None:
    crashes, timeouts, replaced = updates[CRASHES], updates[TIMEOUTS], updates[REPLACED_GROUPS]
    failures = total(crashes) + total(timeouts)
    if not (failures > FAILURES * total(updates[EPISODES]) or total(replaced) > 0):
        return None
    return Seen(
        f"{total(crashes):.0f} simulators raised or died and {total(timeouts):.0f} missed a deadline in "
        f"{total(updates[EPISODES]):.0f} episodes; {total(replaced):.0f} groups were given another task for it.",
        (crashes > 0) | (timeouts > 0) | (replaced > 0),
    )
