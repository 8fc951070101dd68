"""Formulas over a few numbers: which make the target, and what a formula makes. Exact throughout."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import combinations, permutations, product
from typing import Any, NamedTuple

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_SIGNS: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
_SUM, _PRODUCT, _ATOM = 1, 2, 3  # how strongly the outermost operator of a formula binds
# Floats find candidates quickly, fractions decide. Sums and quotients of a few cards that differ, differ by more.
_NEAR = 1e-6


class _Node(NamedTuple):
    """A formula as a tree: a number, or two parts and the operator between them."""

    value: float
    sign: str = ""
    parts: tuple[_Node, ...] = ()


@lru_cache(maxsize=4096)
def solutions(numbers: tuple[int, ...], target: int) -> tuple[str, ...]:
    """Formulas that use each number once and make the target; the shortest first, then by the alphabet.

    Operands of sums and products stand in one order only, and brackets where they are needed.

    Args:
        numbers: in ascending order, so that a deal is solved once.
        target: the number to make.
    """
    near = {
        _write(node)[0]
        for node in _combine([_Node(float(n)) for n in numbers])
        if abs(node.value - target) < _NEAR
    }
    found = [formula for formula in near if evaluate(formula) == target]
    return tuple(sorted(found, key=lambda formula: (len(formula), formula)))


def is_solvable(numbers: tuple[int, ...], target: int) -> bool:
    """Whether there is such a formula."""
    return bool(solutions(numbers, target))


def _combine(parts: Sequence[_Node]) -> Iterator[_Node]:
    """Everything that can be made of all parts."""
    if len(parts) == 1:
        yield parts[0]
        return
    for i, j in combinations(range(len(parts)), 2):
        rest = [part for k, part in enumerate(parts) if k not in (i, j)]
        for node in _pairs(parts[i], parts[j]):
            yield from _combine([node, *rest])


def _pairs(a: _Node, b: _Node) -> Iterator[_Node]:
    yield _Node(a.value + b.value, "+", (a, b))
    yield _Node(a.value * b.value, "*", (a, b))
    for left, right in ((a, b), (b, a)):
        yield _Node(left.value - right.value, "-", (left, right))
        if right.value:
            yield _Node(left.value / right.value, "/", (left, right))


def _write(node: _Node) -> tuple[str, int]:
    """The formula, and how strongly it binds."""
    if not node.parts:
        return str(int(node.value)), _ATOM
    binding = _SUM if node.sign in "+-" else _PRODUCT
    # What is taken away from or divided by must bind more strongly, or its own operators would change sides.
    least = (binding, binding + (node.sign in "-/"))
    left, right = (
        text if binds >= needed else f"({text})"
        for (text, binds), needed in zip(map(_write, node.parts), least, strict=True)
    )
    return f"{left}{node.sign}{right}", binding


def evaluate(formula: str, number: Callable[[int], Any] = Fraction) -> Any:
    """What a formula of numbers, + - * / and brackets makes, or None: it is incomplete, or divides by 0.

    Args:
        formula: may be anything; nothing but arithmetic is carried out.
        number: what numbers are made into: `Fraction` is exact, `int` divides into floats.
    """
    try:
        return _value(ast.parse(formula, mode="eval").body, number)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr, number: Callable[[int], Any]) -> Any:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_value(node.left, number), _value(node.right, number))
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return number(node.value)
    raise ValueError("no arithmetic of whole numbers")


@lru_cache(maxsize=1024)
def bracketed_solutions(numbers: tuple[int, ...], target: int) -> frozenset[str]:
    """The solutions that the original knows: all orders and operators of four numbers, in seven ways of bracketing.

    Its grading compares beginnings of formulas with these.

    Args:
        numbers: four of them, in ascending order.
        target: the number to make.
    """
    # Which numbers stand in brackets, as ranges of positions.
    bracketings = ((), ((0, 2),), ((0, 3),), ((1, 3),), ((1, 4),), ((2, 4),), ((0, 2), (2, 4)))
    found = set()
    for order in sorted(set(permutations(numbers))):
        for signs in product("+-*/", repeat=3):
            for brackets in bracketings:
                value = _bracketed_value(order, signs, brackets)
                if value is None or abs(value - target) >= _NEAR:
                    continue
                formula = _bracketed(order, signs, brackets)
                if evaluate(formula) == target:
                    found.add(formula)
    return frozenset(found)


def _bracketed_value(
    order: Sequence[float], signs: Sequence[str], brackets: Sequence[tuple[int, int]]
) -> float | None:
    values, between = list(order), list(signs)
    try:
        for start, end in reversed(brackets):  # from the right, so that positions further left stay
            inner = _flat_value(values[start:end], between[start : end - 1])
            values[start:end], between[start : end - 1] = [inner], []
        return _flat_value(values, between)
    except ZeroDivisionError:
        return None


def _flat_value(values: Sequence[float], signs: Sequence[str]) -> float:
    """The value of a formula without brackets."""
    total, term = 0.0, values[0]
    for sign, value in zip(signs, values[1:], strict=True):
        if sign in "*/":
            term = _SIGNS[sign](term, value)
        else:
            total, term = total + term, value if sign == "+" else -value
    return total + term


def _bracketed(order: Sequence[int], signs: Sequence[str], brackets: Sequence[tuple[int, int]]) -> str:
    opening, closing = {start for start, _ in brackets}, {end - 1 for _, end in brackets}
    words = [f"{'(' * (i in opening)}{n}{')' * (i in closing)}" for i, n in enumerate(order)]
    return "".join(word + sign for word, sign in zip(words, [*signs, ""], strict=True))
