"""The solver is exact, complete and says what its formulas make."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_vlm.sims.cards.solver import bracketed_solutions, evaluate, is_solvable, solutions

NUMBERS = st.lists(st.integers(1, 13), min_size=4, max_size=4).map(lambda n: tuple(sorted(n)))


def by_brute_force(numbers: tuple[int, ...], target: int) -> bool:
    """All orders, operators and shapes of trees, in fractions."""

    def results(order: tuple[int, ...]) -> set[Fraction]:
        if len(order) == 1:
            return {Fraction(order[0])}
        made = set()
        for cut in range(1, len(order)):
            for a, b in product(results(order[:cut]), results(order[cut:])):
                made |= {a + b, a - b, a * b} | ({a / b} if b else set())
        return made

    return any(target in results(order) for order in set(permutations(numbers)))


@given(numbers=NUMBERS, target=st.sampled_from([24, 7, 100]))
@settings(max_examples=25, deadline=None)
def test_solutions_are_found_where_there_are_any(numbers: tuple[int, ...], target: int) -> None:
    assert is_solvable(numbers, target) == by_brute_force(numbers, target)


@given(numbers=NUMBERS)
@settings(max_examples=40, deadline=None)
def test_every_solution_uses_each_number_once_and_makes_the_target(numbers: tuple[int, ...]) -> None:
    for formula in solutions(numbers, 24):
        assert evaluate(formula) == 24
        digits = "".join(c if c.isdigit() else " " for c in formula).split()
        assert Counter(map(int, digits)) == Counter(numbers)


@given(numbers=NUMBERS)
@settings(max_examples=10, deadline=None)
def test_the_originals_seven_bracketings_solve_the_same_deals(numbers: tuple[int, ...]) -> None:
    known = bracketed_solutions(numbers, 24)
    assert bool(known) == is_solvable(numbers, 24)
    assert all(evaluate(formula) == 24 for formula in known)


def test_brackets_stand_only_where_they_are_needed() -> None:
    assert solutions((3, 3, 8, 8), 24) == ("8/(3-8/3)",)
    assert solutions((1, 1, 1, 1), 24) == ()
    assert all("(" not in formula for formula in solutions((1, 2, 3, 4), 24)[:2])


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("8/(3-8/3)", Fraction(24)),
        ("1/3", Fraction(1, 3)),
        ("10-2-3", Fraction(5)),
        ("2*(3+4", None),
        ("5/(3-3)", None),
        ("5/0", None),
        ("", None),
        ("2**9", None),
        ("-5", None),
        ("1.5", None),
        ("True", None),
        ("f(3)", None),
        ("05", None),
        ("(" * 5000, None),
        ("9" * 10_000, None),
    ],
)
def test_only_arithmetic_of_whole_numbers_has_a_value(formula: str, value: Fraction | None) -> None:
    assert evaluate(formula) == value
