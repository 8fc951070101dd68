"""One error tree. Every message says what was wrong, the value, the nearest valid choice and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from functools import partial


class RLlibVLMError(Exception):
    """Base of every error this package raises on purpose."""


class UnknownNameError(RLlibVLMError, ValueError):
    """A name that is in no table: says which table, and what was probably meant."""

    def __init__(self, what: str, name: object, known: Iterable[str], *, hint: str = "") -> None:
        self.what = what
        self.name = name
        self.known = sorted(known)
        self.hint = hint
        message = f"{what} has no {name!r}.{did_you_mean(str(name), self.known)}"
        message += f" Known: {', '.join(self.known) or '(none)'}."
        super().__init__(f"{message} {hint}".rstrip())

    def __reduce__(self) -> tuple[partial[UnknownNameError], tuple[str, object, list[str]]]:
        return partial(type(self), hint=self.hint), (self.what, self.name, self.known)


class ConfigErrors(RLlibVLMError, ValueError):
    """Everything that is wrong with a configuration, all at once."""

    def __init__(self, source: str, errors: Sequence[str]) -> None:
        self.source = source
        self.errors = list(errors)
        lines = "\n".join(f"  {i}. {e}" for i, e in enumerate(self.errors, 1))
        noun = "problem" if len(self.errors) == 1 else "problems"
        super().__init__(f"{source}: {len(self.errors)} {noun}\n{lines}")

    def __reduce__(self) -> tuple[type[ConfigErrors], tuple[str, list[str]]]:
        return type(self), (self.source, self.errors)


class MissingExtraError(RLlibVLMError, ImportError):
    """An optional dependency is not installed; the message is the line that installs it."""

    def __init__(self, what: str, extra: str, *, hint: str = "") -> None:
        self.what = what
        self.extra = extra
        self.hint = hint
        message = f"{what} needs an optional dependency: pip install 'rllib_vlm[{extra}]'"
        super().__init__(f"{message}. {hint}" if hint else message)

    def __reduce__(self) -> tuple[partial[MissingExtraError], tuple[str, str]]:
        return partial(type(self), hint=self.hint), (self.what, self.extra)


class SimulatorError(RLlibVLMError, RuntimeError):
    """A simulator could not start, raised, died or missed its deadline."""


class PlacementError(RLlibVLMError, RuntimeError):
    """A trial asks for more than the cluster has; the message shows both side by side."""


class ModelError(RLlibVLMError, RuntimeError):
    """A model directory, tokenizer or checkpoint cannot be used as asked."""


class LostTurnError(ModelError):
    """An engine died each time it was asked for this turn. It costs an episode, not the run."""


class LearnerError(RLlibVLMError, RuntimeError):
    """A learner process died, or did not do what it was asked for."""


class CheckpointError(RLlibVLMError, RuntimeError):
    """A checkpoint is torn, cut, changed or of something else."""


class DataError(RLlibVLMError, ValueError):
    """A demonstration file or data set is missing, torn, foreign or of another format version."""


def quote(text: str, *, limit: int = 24) -> str:
    """A short, printable quotation of somebody else's words (escapes what logs cannot hold)."""
    return repr(text if len(text) <= limit else text[:limit] + "...")


def unlisted(name: str, value: object, known: Iterable[str]) -> list[str]:
    """The problem of an argument `name` whose value is none of `known`, with the nearest; nothing if it is one."""
    known = list(known)
    if value in known:
        return []
    return [f"{name}={value!r}.{did_you_mean(str(value), known)} Known: {', '.join(known)}"]


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, if one is like it."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the closest known name, or an empty string."""
    close = closest(name, known)
    return f" Did you mean {close!r}?" if close else ""
