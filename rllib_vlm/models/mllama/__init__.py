"""Llama 3.2 Vision (transformers' Mllama): `Mllama` is the family, one module for each thing it has to know."""

from rllib_vlm.models.mllama.family import Mllama

__all__ = ["Mllama"]
