"""Tokens that are never sampled, in vLLM's terms. Imported by vLLM, in its own processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor


class BannedTokens(LogitsProcessor):
    """A logits processor of vLLM's that never lets the model's banned tokens be sampled.

    They are taken out before the temperature, in every row, as `VLMFamily.logits` does: so the log-probs of the
    distribution that sampled ("processed_logprobs") are the learner's. `allowed_token_ids` of a request would be as
    exact, at the price of the vocabulary in each request; `logit_bias` is cut at -100, which no temperature above 1
    survives; `bad_words` is a loop in Python per row and token.
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        banned = vllm_config.additional_config["banned_token_ids"]
        self._banned = torch.tensor(banned, dtype=torch.long, device=device)

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Asks nothing of a request."""

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        """All rows are alike."""

    def apply(self, logits: Tensor) -> Tensor:
        return logits.index_fill_(-1, self._banned, -torch.inf)
