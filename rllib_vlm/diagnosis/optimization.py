"""Findings about the steps: how fast, how far and on what the optimizer went."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from rllib_vlm.diagnosis.curves import (
    CLIP_FRACTION,
    EXPLAINED,
    FIRST_LOG_RATIO,
    KL,
    LEARNING_RATE,
    MISMATCH_KL,
    MISMATCH_LOG_RATIO,
    POLICY_LAG,
    POLICY_LOSS,
    RATIO_MAX,
    REFERENCE_KL,
    SAMPLER_GAP,
    SKIPPED_STEPS,
    STEPS,
    SUCCESS,
    TOKENS,
    TOTAL_LOSS,
    VALUE_LOSS,
    Curves,
    largest,
    levels,
    median,
    running,
    total,
)
from rllib_vlm.diagnosis.finding import Seen

RISE = 1.2  # schedules only fall after their warm-up; what rises by a fifth is no rounding
LARGE_KL = 0.05  # nats a token; implementations of PPO stop an update at 0.01 to 0.015
LARGE_CLIP_FRACTION = 0.3  # where PPO learns it is below 0.2
LARGE_RATIO = 100.0  # PPO's clip does not bound what such a token does where its advantage is negative
DEAD = 0.1  # of the returns' variance; a critic of no use explains 0
UPDATES_OF_A_CRITIC = 5  # a critic from nothing needs a few
GAP = 0.02  # nats a token: twice what learning in bfloat16 makes
GAP_OF_A_TOKEN = 1.0  # nats: its ratio is off by e, far beyond the clip
OFTEN = 0.1  # of the updates
TINY_KL = 3e-4  # nats a token and update, which taught nothing in runs of our own (docs/results.md)
TINY_WAY = 3e-3  # nats a token from where reinforcement learning began, after all updates
FLAT = 0.05  # of a success rate
SOLVED = 0.9  # success rate that leaves little to learn
UPDATES_TO_LEARN_IN = 10


def rate_restart(updates: Curves) -> Seen | None:
    """After a rollback or a resume the schedule goes on from the update the run went back to, which is no rise."""
    rate, kept = updates[LEARNING_RATE], np.flatnonzero(updates.kept)
    where = np.zeros(len(updates), bool)
    warming_up = True
    for before, now in pairwise(kept):
        warming_up = warming_up and bool(rate[now] > rate[before])
        where[now] = not warming_up and rate[before] > 0.0 and rate[now] > RISE * rate[before]
    if not where.any():
        return None
    at = int(np.flatnonzero(where)[0])
    before = kept[np.searchsorted(kept, at) - 1]
    return Seen(
        f"the learning rate rose from {rate[before]:.3g} to {rate[at]:.3g}, long after its warm-up: a schedule began "
        "anew, or a resumed run got other settings. The optimizer's moments fit the lower rate.",
        where,
    )


def ratio_explosion(updates: Curves) -> Seen | None:
    kl, clipped, ratio = updates[KL], updates[CLIP_FRACTION], updates[RATIO_MAX]
    where = (kl > LARGE_KL) | (clipped > LARGE_CLIP_FRACTION) | (ratio > LARGE_RATIO)
    if not where.any():
        return None
    figures = (
        ("approx_kl {:.3g}", largest(kl[where])),
        ("clip_fraction {:.2g}", largest(clipped[where])),
        ("ratio_max {:.3g}", largest(ratio[where])),
    )
    said = ", ".join(text.format(value) for text, value in figures if not np.isnan(value))
    return Seen(
        f"{where.sum()} of {len(updates)} updates moved the policy too far from the one that sampled: up to {said}.",
        where,
    )


def skipped_steps(updates: Curves) -> Seen | None:
    """Results are recorded without their NaNs: a loss that is missing although tokens were read was one."""
    skipped = updates[SKIPPED_STEPS]
    infinite = np.isinf(updates[POLICY_LOSS]) | np.isinf(updates[TOTAL_LOSS]) | np.isinf(updates[VALUE_LOSS])
    lost = infinite | (np.isnan(updates[POLICY_LOSS]) & (updates[TOKENS] > 0))
    where = (skipped > 0) | lost
    if not where.any():
        return None
    said = []
    if total(skipped) > 0:
        steps = f"{total(skipped):.0f} of {total(updates[STEPS]):.0f} optimizer steps"
        said.append(f"{steps} had gradients that were not finite and were left out")
    if lost.any():
        said.append(f"in {lost.sum()} updates the loss was not finite")
    return Seen("; ".join(said) + ".", where)


def dead_critic(updates: Curves) -> Seen | None:
    explained = np.where(np.isnan(updates[VALUE_LOSS]), np.nan, updates[EXPLAINED])
    known = explained[np.isfinite(explained)]
    if len(known) < UPDATES_OF_A_CRITIC or not largest(running(explained)) < DEAD:
        return None
    return Seen(
        f"explained variance is {known.min():.2g} to {known.max():.2g} (median {np.median(known):.2g}): the critic "
        "says next to nothing about how an episode will end, so advantages are as noisy as returns.",
        np.isfinite(explained),
    )


def sampler_gap(updates: Curves) -> Seen | None:
    gap = np.fmax(updates[SAMPLER_GAP], updates[MISMATCH_KL])
    of_a_token = np.fmax(updates[FIRST_LOG_RATIO], updates[MISMATCH_LOG_RATIO])
    where = (gap > GAP) | (of_a_token > GAP_OF_A_TOKEN)
    if not len(where) or where.mean() < OFTEN:
        return None
    figures = (("{:.2g} nats a token", largest(gap)), ("{:.2g} nats on one token", largest(of_a_token)))
    said = " and ".join(text.format(value) for text, value in figures if not np.isnan(value))
    lag = largest(updates[POLICY_LAG])
    old = (
        f" Answers were sampled with weights up to {lag:g} updates old, which is a part of it."
        if lag > 0
        else ""
    )
    return Seen(
        f"before any step of an update, sampler and learner differ by up to {said}: they do not compute the same "
        f"policy.{old}",
        where,
    )


def nothing_learnt(updates: Curves) -> Seen | None:
    """The KL of an update with one step is taken before that step: only the way from the reference tells then."""
    first, last = levels(updates[SUCCESS])
    flat = abs(last - first) < FLAT and max(first, last) < SOLVED
    if not flat or len(updates) < UPDATES_TO_LEARN_IN:
        return None
    told = updates[KL][updates[STEPS] != 1]
    kl, way = median(told), levels(updates[REFERENCE_KL])[1]
    if len(told):
        little, moved = kl < TINY_KL, f"{kl:.2g} nats a token an update"
    else:
        little, moved = way < TINY_WAY, f"{way:.2g} nats a token in all"
    if not little:
        return None
    return Seen(
        f"success stays where it was ({first:.0%}, then {last:.0%}), and the policy hardly moves: {moved}.",
        np.ones(len(updates), bool),
    )
