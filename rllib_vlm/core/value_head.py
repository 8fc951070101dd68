"""Which states a critic values: one per token, or one per turn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from rllib_vlm.errors import ConfigErrors, did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueHeadConfig:
    """`rl_module.model_config.value_head`.

    `per="token"` gives every sampled token the value of the state before it; `per="turn"` gives all
    tokens of a turn the value of the state before its first one, which is the last prompt token's.
    `detach` keeps the critic's gradient out of the policy's model.
    """

    width: int | None = None  # units of the hidden layer; the model's hidden size where None
    per: Literal["token", "turn"] = "token"
    detach: bool = False

    @classmethod
    def of(cls, value: bool | Mapping[str, Any] | None) -> ValueHeadConfig | None:
        """From a configuration's value: true, false or nothing, or a mapping of the fields.

        Raises:
            ConfigErrors: an unknown key, or a value that does not fit.
        """
        if not value:
            return None
        if value is True:
            return cls()
        fields = ("width", "per", "detach")
        errors = [f"no key {k!r}.{did_you_mean(str(k), fields)}" for k in value if k not in fields]
        per = value.get("per", "token")
        if per not in ("token", "turn"):
            errors.append(f"per is {per!r}, not 'token' or 'turn'")
        width = value.get("width")
        if width is not None and not (isinstance(width, int) and width > 0):
            errors.append(f"width is {width!r}, not a positive whole number")
        if errors:
            raise ConfigErrors("model_config.value_head", errors)
        return cls(width=width, per=per, detach=bool(value.get("detach", False)))


def first_of_turn(sampled: Tensor, turn_ids: Tensor, segment_ids: Tensor) -> Tensor:
    """Bool [B, L]: the first sampled token of every turn of every packed segment.

    Args:
        sampled: bool [B, L], tokens the model sampled.
        turn_ids: int64 [B, L].
        segment_ids: int64 [B, L].
    """
    first = sampled.clone()
    same = (turn_ids[:, 1:] == turn_ids[:, :-1]) & (segment_ids[:, 1:] == segment_ids[:, :-1])
    first[:, 1:] &= ~(sampled[:, :-1] & same)
    return first


def spread(per_turn: Tensor, first: Tensor, mask: Tensor) -> Tensor:
    """[N] each token's entry of `per_turn` [M], M = first.sum(), N = mask.sum(), both in reading order."""
    index = first.flatten().cumsum(0)[mask.flatten()] - 1
    return per_turn[index]
