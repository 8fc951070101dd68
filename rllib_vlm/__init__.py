"""Reinforcement learning of vision-language(-action) agents in simulators, as a plugin of Ray RLlib.

Importing this package is cheap on purpose: neither torch nor ray is loaded until one of the
public names below is first used (PEP 562), so command-line tools and configuration checks start
at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rllib_vlm.algorithms.grpo import VLMGRPO as VLMGRPO
    from rllib_vlm.algorithms.grpo import VLMGRPOConfig as VLMGRPOConfig
    from rllib_vlm.algorithms.ppo import VLMPPO as VLMPPO
    from rllib_vlm.algorithms.ppo import VLMPPOConfig as VLMPPOConfig
    from rllib_vlm.algorithms.sft import VLMSFT as VLMSFT
    from rllib_vlm.algorithms.sft import VLMSFTConfig as VLMSFTConfig

__version__ = "0.1.0"

_EXPORTS = {
    "VLMGRPO": "rllib_vlm.algorithms.grpo",
    "VLMGRPOConfig": "rllib_vlm.algorithms.grpo",
    "VLMPPO": "rllib_vlm.algorithms.ppo",
    "VLMPPOConfig": "rllib_vlm.algorithms.ppo",
    "VLMSFT": "rllib_vlm.algorithms.sft",
    "VLMSFTConfig": "rllib_vlm.algorithms.sft",
}

__all__ = ["__version__", *_EXPORTS]  # noqa: PLE0604  (names resolved lazily)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
