"""Findings about the policy: what it has unlearnt, and how it went to pieces.

What collapses look like is from RAGEN's echo trap (arXiv 2504.20073) and from runs of our own (docs/results.md).
"""

from __future__ import annotations

import numpy as np

from rllib_vlm.diagnosis.curves import (
    ANSWER_TOKENS,
    CUT_ANSWERS,
    ENTROPY,
    GROUP_SPREAD,
    LEVEL,
    MIN_UPDATES,
    PARSE_FAILURES,
    RETURN,
    SUCCESS,
    TURNS,
    TURNS_MAX,
    VALUE_MEAN,
    Curves,
    Values,
    largest,
    levels,
    median,
    running,
)
from rllib_vlm.diagnosis.finding import Seen

SEVERAL = 3  # updates; fewer may be an odd batch
FALLEN = 0.6  # of the best level: below it more is lost than the noise of some dozen episodes explains
LEAST_FALL = 0.1  # of a success rate; two runs without luck differ by as much
NEAR_LIMIT = 0.9  # of the limit of turns: nearly every episode is cut
HALF = 0.5
BLOW_UP = 2.0  # times the entropy or length at first: training sharpens and settles, it does not double
MANY_FAILURES = 0.1  # one answer in ten: no run that learns loses so many
COLLAPSED = 0.2  # of the entropy at first
SOLVED = 0.9  # success from which on a policy may be sure of itself
QUARTER = 0.25  # of a return: more than it varies


def success_fell(updates: Curves) -> Seen | None:
    """At the curriculum's last level alone, since harder tasks succeed less without any harm."""
    comparable = _at_last_level(updates, updates[SUCCESS])
    if np.isfinite(comparable).sum() < MIN_UPDATES:
        return None
    success = running(comparable)
    best = int(np.nanargmax(success))
    last = success[np.isfinite(success)][-1]
    fallen = success < FALLEN * success[best]
    fallen[:best] = False
    if not fallen.any() or last >= FALLEN * success[best] or success[best] - last < LEAST_FALL:
        return None
    level = " at the curriculum's last level" if np.isfinite(updates[LEVEL]).any() else ""
    return Seen(
        f"the success of training episodes fell from {success[best]:.0%} (around update {updates.numbers[best]}) "
        f"to {last:.0%}{level}.",
        fallen,
    )


def never_ending(updates: Curves) -> Seen | None:
    turns, success = updates[TURNS], updates[SUCCESS]
    limit, best = largest(updates[TURNS_MAX]), largest(running(success))
    first, _ = levels(turns)
    where = (turns >= NEAR_LIMIT * limit) & (success <= HALF * best)
    if where.sum() < SEVERAL or best < LEAST_FALL or not first < NEAR_LIMIT * limit:
        return None
    returned, valued = median(updates[RETURN][where]), median(updates[VALUE_MEAN][where])
    overvalued = (
        f" The critic values its states at {valued:.3g} on average, an episode returns {returned:.3g}: "
        "to it, running out of turns may be worth more than ending."
        if valued > returned
        else ""
    )
    return Seen(
        f"episodes grew from {first:.3g} turns to {largest(turns[where]):.3g} of at most {limit:g}, and success "
        f"fell from {best:.0%} to {success[where][-1]:.0%}: the policy runs out of turns and never ends an episode."
        + overvalued,
        where,
    )


def entropy_blow_up(updates: Curves) -> Seen | None:
    entropy, failures = updates[ENTROPY], updates[PARSE_FAILURES]
    first, _ = levels(entropy)
    where = (entropy > BLOW_UP * first) & (failures > MANY_FAILURES)
    if where.sum() < SEVERAL:
        return None
    return Seen(
        f"entropy rose from {first:.3g} to {largest(entropy[where]):.3g} nats a token, and up to "
        f"{largest(failures[where]):.0%} of the answers did not parse: nothing in the loss held the answer format.",
        where,
    )


def entropy_collapse(updates: Curves) -> Seen | None:
    entropy = updates[ENTROPY]
    first, last = levels(entropy)
    _, success = levels(updates[SUCCESS])
    if not last < COLLAPSED * first or success >= SOLVED:
        return None
    reached = "" if np.isnan(success) else f" while success is {success:.0%}"
    return Seen(
        f"entropy fell from {first:.3g} to {last:.3g} nats a token{reached}: the policy hardly tries anything new, "
        "so there is little left that it could learn from.",
        entropy < COLLAPSED * first,
    )


def echo_trap(updates: Curves) -> Seen | None:
    """A return that rose is no trap: where all siblings succeed, their returns are as much alike."""
    entropy, spread, returns = updates[ENTROPY], updates[GROUP_SPREAD], updates[RETURN]
    entropy_first, entropy_last = levels(entropy)
    spread_first, spread_last = levels(spread)
    return_first, return_last = levels(returns)
    least = QUARTER * abs(return_first)
    alike = spread_last < HALF * spread_first and not return_last > return_first
    fell = return_last < return_first - least
    if not entropy_last < HALF * entropy_first or not (alike or fell):
        return None
    also = (
        f"the spread of returns within groups from {spread_first:.3g} to {spread_last:.3g}"
        if alike
        else f"the return from {return_first:.3g} to {return_last:.3g}"
    )
    return Seen(
        f"entropy fell from {entropy_first:.3g} to {entropy_last:.3g} nats a token and {also}: "
        "the policy repeats a few answers whatever it is shown (RAGEN's echo trap).",
        entropy < HALF * entropy_first,
    )


def long_answers(updates: Curves) -> Seen | None:
    length, cut = updates[ANSWER_TOKENS], updates[CUT_ANSWERS]
    first, _ = levels(length)
    longer, torn = length > BLOW_UP * first, cut > MANY_FAILURES
    where = longer | torn
    if where.sum() < SEVERAL:
        return None
    said = []
    if longer.any():
        said.append(f"answers grew from {first:.3g} to {largest(length[where]):.3g} tokens")
    if torn.any():
        said.append(f"up to {largest(cut[where]):.0%} of the answers were cut at the token limit")
    return Seen(", and ".join(said) + ".", where)


def _at_last_level(updates: Curves, values: Values) -> Values:
    level = updates[LEVEL]
    known = level[np.isfinite(level)]
    return np.where(level == known[-1], values, np.nan) if len(known) else values
