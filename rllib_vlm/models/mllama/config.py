"""From a configuration to a transformers Mllama: a checkpoint, or a small one of random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    MllamaConfig,
    MllamaForConditionalGeneration,
    PreTrainedTokenizerBase,
)
from transformers.image_processing_base import ImageProcessingMixin

from rllib_vlm.errors import ModelError, UnknownNameError
from rllib_vlm.models.checkpoint import (
    DTYPES,
    check_architecture,
    check_choice,
    check_heads,
    resolve_checkpoint,
)
from rllib_vlm.models.initialization import cosine_filters, initialize
from rllib_vlm.models.mllama.chat import CHAT_TEMPLATE, IMAGE, LLAMA, ROLES
from rllib_vlm.models.mllama.images import ImageFormat
from rllib_vlm.models.tokenizer import load_corpus, train_tokenizer

# What a size stands for; any of these keys can be given beside it.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 128, "num_layers": 6, "vision_hidden": 64, "vision_depth": 2},
    "small": {"hidden_size": 192, "num_layers": 9, "vision_hidden": 96, "vision_depth": 3},
}
_OPEN = 1.0  # gates of a model without a checkpoint; tanh(1) = 0.76


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Keys of `rl_module.model_config` that this family reads."""

    checkpoint: str | None = None  # a directory, or a hub name "org/name"
    dtype: str = "float32"
    max_tiles: int | None = None  # of an image; the checkpoint's own where None
    gradient_checkpointing: bool = False
    freeze: tuple[str, ...] = ()  # patterns of parameter names, e.g. "model.vision_model.*"
    lora: Mapping[str, Any] | None = None  # rank, alpha, target

    # Without a checkpoint: a model of this size with random weights.
    size: str | None = None
    hidden_size: int = 128
    num_layers: int = 6  # those of cross-attention among them
    cross_attention_layers: tuple[int, ...] | None = None  # from 0; every third from 1 on where None
    num_heads: int | None = None  # heads of 32 where None
    num_kv_heads: int | None = None  # half the heads where None
    intermediate_size: int | None = None  # three times hidden_size where None
    vision_hidden: int = 64
    vision_depth: int = 2
    vision_global_depth: int = 1  # of the layers behind those, in which all tiles' features meet once more
    vision_heads: int | None = None  # heads of 32 where None
    vision_intermediate: int | None = None  # three times vision_hidden where None
    patch_size: int = 14
    tile_size: int = 56
    rope_theta: float = 10_000.0
    vocab_size: int = 1280
    tokenizer_words: tuple[str, ...] = ()  # one token each, whatever the texts
    tokenizer_texts: tuple[str, ...] | None = None  # the packaged corpus where None
    corpus: str = "household"
    seed: int = 0

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> ModelSettings:
        """From plain values; a size's own values stand under those given beside it.

        Raises:
            UnknownNameError: a key or a size there is not.
            ModelError: a value out of its range, or both or neither of `checkpoint` and `size`.
        """
        known = [f.name for f in fields(cls)]
        for key in config:
            if key not in known:
                raise UnknownNameError("model_config of mllama", key, known)
        size = config.get("size")
        if size is not None and size not in SIZES:
            raise UnknownNameError("model sizes", size, SIZES)
        values = {**SIZES.get(size or "", {}), **config}
        for key in ("freeze", "tokenizer_words", "tokenizer_texts", "cross_attention_layers"):
            if values.get(key) is not None:
                value = values[key]
                values[key] = (value,) if isinstance(value, str | int) else tuple(value)
        result = cls(**values)
        if (result.checkpoint is None) == (result.size is None):
            got = "both" if result.size else "neither"
            raise ModelError(
                f"give either checkpoint (a directory or hub name) or size ({', '.join(SIZES)}); got {got}"
            )
        check_choice("dtype", result.dtype, DTYPES)
        if result.max_tiles is not None and result.max_tiles < 1:
            raise ModelError(f"max_tiles is {result.max_tiles}; an image has 1 or more")
        if result.size is not None:
            result._check_sizes()
        return result

    @property
    def heads(self) -> tuple[int, int, int]:
        """Heads of attention in a model without a checkpoint: of text, its keys and values, and pictures."""
        heads = self.num_heads or max(1, self.hidden_size // 32)
        kv_heads = self.num_kv_heads or (heads // 2 if heads % 2 == 0 else heads)
        return heads, kv_heads, self.vision_heads or max(1, self.vision_hidden // 32)

    @property
    def cross_layers(self) -> tuple[int, ...]:
        """Layers that read the images, in a model without a checkpoint."""
        given = self.cross_attention_layers
        return tuple(range(1, self.num_layers, 3)) if given is None else given

    def _check_sizes(self) -> None:
        heads, kv_heads, vision = self.heads
        check_heads("hidden_size", self.hidden_size, "num_heads", heads, 2)
        check_heads("num_heads", heads, "num_kv_heads", kv_heads, 1)
        check_heads("vision_hidden", self.vision_hidden, "vision_heads", vision, 1)
        if self.tile_size < self.patch_size or self.tile_size % self.patch_size:
            nearest = max(1, round(self.tile_size / self.patch_size)) * self.patch_size
            raise ModelError(
                f"tile_size {self.tile_size} must be a multiple of patch_size {self.patch_size}; nearest: {nearest}"
            )
        wrong = [i for i in self.cross_layers if not 0 <= i < self.num_layers]
        if wrong or not self.cross_layers or len(self.cross_layers) == self.num_layers:
            raise ModelError(
                f"cross_attention_layers is {list(self.cross_layers)}: give some, not all, of the layers 0 to"
                f" {self.num_layers - 1}"
            )


@dataclass(frozen=True)
class Loaded:
    model: MllamaForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    images: ImageFormat


def load(config: ModelSettings) -> Loaded:
    """The model, its tokenizer and its image format.

    Raises:
        ModelError: the checkpoint is missing, unreadable or of another architecture, or its image settings do not
            fit its weights.
    """
    loaded = _from_checkpoint(config) if config.checkpoint is not None else _from_size(config)
    # What was trained is what plain transformers is to write too; see `chat`.
    loaded.tokenizer.chat_template = CHAT_TEMPLATE
    return loaded


def _from_size(config: ModelSettings) -> Loaded:
    texts = load_corpus(config.corpus) if config.tokenizer_texts is None else config.tokenizer_texts
    words = (*ROLES, *config.tokenizer_words)
    tokenizer = train_tokenizer(texts, vocab_size=config.vocab_size, words=words, chat=LLAMA)
    images = ImageFormat(tile=config.tile_size, max_tiles=config.max_tiles or 4)
    image_token = int(tokenizer.convert_tokens_to_ids(IMAGE))
    heads, kv_heads, vision_heads = config.heads
    inner = [max(0, config.vision_depth - 2)]  # layers whose features go to the language model as well
    model_config = MllamaConfig(
        text_config={
            "vocab_size": image_token,  # ids below it: the output layer ends before the image's
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size or 3 * config.hidden_size,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "cross_attention_layers": list(config.cross_layers),
            "max_position_embeddings": 32768,
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": config.vision_hidden,
            "num_hidden_layers": config.vision_depth,
            "num_global_layers": config.vision_global_depth,
            "attention_heads": vision_heads,
            "intermediate_size": config.vision_intermediate or 3 * config.vision_hidden,
            "vision_output_dim": config.vision_hidden * (1 + len(inner)),
            "intermediate_layers_indices": inner,
            "image_size": config.tile_size,
            "patch_size": config.patch_size,
            "max_num_tiles": images.max_tiles,
            "supported_aspect_ratios": [list(grid) for grid in images.grids],
        },
        image_token_index=image_token,
        dtype=DTYPES[config.dtype],
    )
    model_config._attn_implementation = "sdpa"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = MllamaForConditionalGeneration(model_config)
        initialize(model, num_layers=config.num_layers)
        _open(model)
    model = model.to(DTYPES[config.dtype])
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return Loaded(model, tokenizer, images)


@torch.no_grad()
def _open(model: MllamaForConditionalGeneration) -> None:
    """What is for models that begin as a language model without eyes, which a model of random weights does not.

    Gates that let features of images in begin shut there (Alayrac et al. 2022, arXiv 2204.14198), and no gradient
    reaches the vision tower until they have opened.
    """
    shut = ("cross_attn_attn_gate", "cross_attn_mlp_gate", "gate_attn", "gate_ffn")
    for name, parameter in model.named_parameters():
        if name.endswith(shut):
            parameter.fill_(_OPEN)
    filters = model.model.vision_model.patch_embedding.weight
    count, colours, height, width = filters.shape
    filters.copy_(cosine_filters((count, colours, 1, height, width))[:, :, 0])


def _from_checkpoint(config: ModelSettings) -> Loaded:
    source = resolve_checkpoint(str(config.checkpoint))
    try:
        check_architecture(source, MllamaForConditionalGeneration)
        model = MllamaForConditionalGeneration.from_pretrained(
            source, dtype=DTYPES[config.dtype], attn_implementation="sdpa"
        )
        tokenizer = AutoTokenizer.from_pretrained(source)
        images = _image_format(source, model.config.vision_config)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"checkpoint {str(source)!r} cannot be loaded: {error}") from error
    if config.max_tiles not in (None, images.max_tiles):
        raise ModelError(
            f"max_tiles is {config.max_tiles}; the checkpoint's vision tower reads {images.max_tiles} tiles an image"
        )
    return Loaded(model, tokenizer, images)


def _image_format(source: Path | str, vision: Any) -> ImageFormat:
    """Statistics from the checkpoint's image processor file, sizes from its vision tower.

    Raises:
        ModelError: the tower knows other canvases than the image processor makes.
    """
    values, _ = ImageProcessingMixin.get_image_processor_dict(source)
    default = ImageFormat()
    form = ImageFormat(
        tile=vision.image_size,
        max_tiles=vision.max_num_tiles,
        mean=tuple(values.get("image_mean") or default.mean),
        std=tuple(values.get("image_std") or default.std),
    )
    if [tuple(grid) for grid in vision.supported_aspect_ratios] != list(form.grids):
        raise ModelError(
            f"the vision tower's supported_aspect_ratios are {vision.supported_aspect_ratios}; of {form.max_tiles}"
            f" tiles the image processor makes {[list(grid) for grid in form.grids]}"
        )
    return form
