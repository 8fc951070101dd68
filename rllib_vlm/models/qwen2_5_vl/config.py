"""From a configuration to a transformers Qwen2.5-VL: a checkpoint, or a small one of random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from rllib_vlm.errors import ModelError, UnknownNameError
from rllib_vlm.models.checkpoint import (
    ATTENTION,
    DTYPES,
    check_architecture,
    check_choice,
    check_heads,
    resolve_checkpoint,
    round_up,
)
from rllib_vlm.models.initialization import initialize
from rllib_vlm.models.qwen2_5_vl.images import ImageFormat
from rllib_vlm.models.tokenizer import load_corpus, train_tokenizer

# What a size stands for; any of these keys can be given beside it.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 128, "num_layers": 4, "vision_hidden": 64, "vision_depth": 2},
    "small": {"hidden_size": 192, "num_layers": 6, "vision_hidden": 96, "vision_depth": 3},
}


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Heads of attention: of text, its keys and values, and pictures; and the rotary frequencies of each axis."""

    text: int
    key_value: int
    vision: int
    mrope_section: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Keys of `rl_module.model_config` that this family reads."""

    checkpoint: str | None = None  # a directory, a hub name "org/name", or "package:<name>"
    weights: bool = True  # False leaves a checkpoint's unread, for processes that only write and read prompts
    dtype: str = "float32"
    attn_implementation: str = "sdpa"
    min_pixels: int | None = None  # of an image; the checkpoint's own where None
    max_pixels: int | None = None
    gradient_checkpointing: bool = False
    plain_forward: bool = False  # transformers' own forward in learning: needed where parameters are sharded
    freeze: tuple[str, ...] = ()  # patterns of parameter names, e.g. "model.visual.*"
    lora: Mapping[str, Any] | None = None  # rank, alpha, target

    # Without a checkpoint: a model of this size with random weights.
    size: str | None = None
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int | None = None  # heads of 32 where None
    num_kv_heads: int | None = None  # half the heads where None
    intermediate_size: int | None = None  # three times hidden_size where None
    vision_hidden: int = 64
    vision_depth: int = 2
    vision_heads: int | None = None  # heads of 32 where None
    vision_intermediate: int | None = None  # three times vision_hidden where None
    patch_size: int = 14
    spatial_merge: int = 2
    rope_theta: float = 10_000.0
    mrope_section: tuple[int, ...] | None = (
        None  # rotary frequencies of time, height, width; 1:1.5:1.5 where None
    )
    vocab_size: int = 1280
    tokenizer_words: tuple[str, ...] = ()  # one token each, whatever the texts
    tokenizer_texts: tuple[str, ...] | None = None  # the packaged corpus where None
    corpus: str = "household"
    seed: int = 0

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> ModelConfig:
        """From plain values; a size's own values stand under those given beside it.

        Raises:
            UnknownNameError: a key or a size there is not.
            ModelError: a value out of its range, or both or neither of `checkpoint` and `size`.
        """
        known = [f.name for f in fields(cls)]
        for key in config:
            if key not in known:
                raise UnknownNameError("model_config of qwen2_5_vl", key, known)
        size = config.get("size")
        if size is not None and size not in SIZES:
            raise UnknownNameError("model sizes", size, SIZES)
        values = {**SIZES.get(size or "", {}), **config}
        for key in ("freeze", "tokenizer_words", "tokenizer_texts", "mrope_section"):
            if values.get(key) is not None:
                value = values[key]
                values[key] = (value,) if isinstance(value, str) else tuple(value)
        result = cls(**values)
        if (result.checkpoint is None) == (result.size is None):
            got = "both" if result.size else "neither"
            raise ModelError(
                f"give either checkpoint (a directory or hub name) or size ({', '.join(SIZES)}); got {got}"
            )
        if result.size is not None:
            result.heads  # noqa: B018  (raises)
        check_choice("dtype", result.dtype, DTYPES)
        check_choice("attn_implementation", result.attn_implementation, ATTENTION)
        return result

    @property
    def heads(self) -> Heads:
        """How attention is dealt out in a model without a checkpoint.

        Raises:
            ModelError: sizes do not fit.
        """
        heads = self.num_heads or max(1, self.hidden_size // 32)
        kv_heads = self.num_kv_heads or (heads // 2 if heads % 2 == 0 else heads)
        vision = self.vision_heads or max(1, self.vision_hidden // 32)
        check_heads("hidden_size", self.hidden_size, "num_heads", heads, 4)
        check_heads("num_heads", heads, "num_kv_heads", kv_heads, 1)
        check_heads("vision_hidden", self.vision_hidden, "vision_heads", vision, 4)
        half = self.hidden_size // heads // 2
        side = 3 * half // 8
        sections = self.mrope_section or (half - 2 * side, side, side)
        if len(sections) != 3 or min(sections) < 1 or sum(sections) != half:
            raise ModelError(
                f"mrope_section is {list(sections)}: give three numbers from 1 up that add up to {half}, "
                "half a head's size"
            )
        return Heads(text=heads, key_value=kv_heads, vision=vision, mrope_section=tuple(sections))


@dataclass(frozen=True)
class Loaded:
    model: Qwen2_5_VLForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    images: ImageFormat = field(default_factory=ImageFormat)


def load(config: ModelConfig) -> Loaded:
    """The model, its tokenizer and its image format.

    Raises:
        ModelError: the checkpoint is missing, unreadable or of another architecture; sizes do not fit.
    """
    loaded = _from_checkpoint(config) if config.checkpoint is not None else _from_size(config)
    model = loaded.model
    if "sliding_attention" in (model.config.text_config.layer_types or ()):
        raise ModelError(
            "a checkpoint with sliding-window attention is not supported; set use_sliding_window: false"
        )
    if config.attn_implementation == "eager" and not config.plain_forward:
        raise ModelError("attn_implementation 'eager' takes effect only with plain_forward: true")
    limits = {k: v for k in ("min_pixels", "max_pixels") if (v := getattr(config, k)) is not None}
    return replace(loaded, images=replace(loaded.images, **limits))


def _from_size(config: ModelConfig) -> Loaded:
    texts = load_corpus(config.corpus) if config.tokenizer_texts is None else config.tokenizer_texts
    tokenizer = train_tokenizer(texts, vocab_size=config.vocab_size, words=config.tokenizer_words)
    heads = config.heads
    model_config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": round_up(len(tokenizer), 8),
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size or 3 * config.hidden_size,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": heads.text,
            "num_key_value_heads": heads.key_value,
            "max_position_embeddings": 32768,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": config.rope_theta,
                "mrope_section": list(heads.mrope_section),
            },
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": config.vision_depth,
            "hidden_size": config.vision_hidden,
            "intermediate_size": config.vision_intermediate or 3 * config.vision_hidden,
            "num_heads": heads.vision,
            "patch_size": config.patch_size,
            "spatial_merge_size": config.spatial_merge,
            "out_hidden_size": config.hidden_size,
            "window_size": 8 * config.patch_size,
            # Small pictures: every block sees the whole picture.
            "fullatt_block_indexes": list(range(config.vision_depth)),
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=True,
        dtype=DTYPES[config.dtype],
    )
    model_config._attn_implementation = config.attn_implementation
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Qwen2_5_VLForConditionalGeneration(model_config)
        initialize(model, num_layers=config.num_layers)
    model = model.to(DTYPES[config.dtype])
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    images = ImageFormat(
        patch=config.patch_size,
        merge=config.spatial_merge,
        min_pixels=(config.patch_size * config.spatial_merge) ** 2,
    )
    return Loaded(model, tokenizer, images)


def _from_checkpoint(config: ModelConfig) -> Loaded:
    source = resolve_checkpoint(str(config.checkpoint))
    try:
        check_architecture(source, Qwen2_5_VLForConditionalGeneration)
        if config.weights:
            model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                source, dtype=DTYPES[config.dtype], attn_implementation=config.attn_implementation
            )
        else:
            with torch.device("meta"):  # shapes and no numbers
                model = Qwen2_5_VLForConditionalGeneration(AutoConfig.from_pretrained(source))
        tokenizer = AutoTokenizer.from_pretrained(source)
        images = _image_format(source, model.config.vision_config)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"checkpoint {str(source)!r} cannot be loaded: {error}") from error
    return Loaded(model, tokenizer, images)


def _image_format(source: Path | str, vision: Any) -> ImageFormat:
    """Limits and statistics from the checkpoint's image processor file, sizes from its vision tower."""
    values, _ = transformers.image_processing_base.ImageProcessingMixin.get_image_processor_dict(source)
    edges = values.get("size") or {}
    default = ImageFormat()
    return ImageFormat(
        patch=vision.patch_size,
        merge=vision.spatial_merge_size,
        temporal=vision.temporal_patch_size,
        min_pixels=values.get("min_pixels") or edges.get("shortest_edge") or default.min_pixels,
        max_pixels=values.get("max_pixels") or edges.get("longest_edge") or default.max_pixels,
        mean=tuple(values.get("image_mean") or default.mean),
        std=tuple(values.get("image_std") or default.std),
    )
