"""Qwen2.5-VL: `Qwen25VL` is the family, one module for each thing it has to know."""

from rllib_vlm.models.qwen2_5_vl.family import Qwen25VL

__all__ = ["Qwen25VL"]
