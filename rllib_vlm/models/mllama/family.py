"""The Mllama family: released checkpoints of Llama 3.2 Vision and tiny models of the same class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, DynamicCache, GenerationConfig
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from rllib_vlm.errors import ModelError
from rllib_vlm.models.adapters import without_lora
from rllib_vlm.models.base import Depths, TokenRows
from rllib_vlm.models.checkpoint import save_config
from rllib_vlm.models.decoding import Sampled, batches_by_length, sample_completions, seeds_of
from rllib_vlm.models.mllama.chat import llama_chat
from rllib_vlm.models.mllama.config import Loaded, ModelSettings, load
from rllib_vlm.models.mllama.decoder import Views, run_layers
from rllib_vlm.models.mllama.segments import Segments
from rllib_vlm.models.mllama.tokens import banned_token_ids, generation_config
from rllib_vlm.models.mllama.vision import image_states
from rllib_vlm.models.precision import Precision, products, reading
from rllib_vlm.models.sessions import Session, SessionCache
from rllib_vlm.models.stopping import StopStrings
from rllib_vlm.models.text import TextSide
from rllib_vlm.types import Detection, Mention, Message, Prompt, SamplingParams


class Mllama(TextSide):
    """Llama 3.2 Vision (arXiv 2407.21783, section 7) behind the `VLMFamily` protocol.

    An image is one token of the prompt. What it shows does not stand in the row: layers of cross-attention read it from
    states of its own. So a row is cheap however large its images are, packed segments have to be taken apart for
    those layers (`packs` is False), and labels of what is seen where have no token to stand at (`labels_images`).

    Example::

        family = Mllama.build({"size": "tiny", "tokenizer_words": ("forward", "stop")})
        prompt = family.encode([Message(role="user", text="<image>where to?", images=(view,))])
        [(ids, logprobs)] = family.generate([prompt], SamplingParams(max_new_tokens=8))
        family.decode(ids)

    Transformers' own layers are called one by one (`decoder`), so sharded parameters and adapters work as they are.
    """

    packs = False
    settings = ModelSettings
    load = staticmethod(load)
    labels_images = False
    served_by = ()  # vLLM has no model of this class any more

    def __init__(self, loaded: Loaded, config: ModelSettings) -> None:
        ids = loaded.model.config
        self.image_token_id = int(ids.image_token_id)
        super().__init__(
            loaded.model,
            loaded.tokenizer,
            llama_chat(loaded.tokenizer, self.image_token_id),
            banned=banned_token_ids(loaded.tokenizer, ids),
        )
        self.images = loaded.images
        self.config = config

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.model.language_model.embed_tokens.weight.device
        return device

    def encode(self, messages: Sequence[Message], after: Prompt | None = None) -> Prompt:
        """Messages to a prompt that ends where the assistant's answer begins; `after` as in `VLMFamily.encode`.

        Raises:
            ModelError: a message's `<image>` and images differ in number, or an image is malformed.
        """
        images = tuple(self.images.resize(image) for message in messages for image in message.images)
        ids, text = self._chat.prompt(messages, [1] * len(images), self.stop_token_ids, after)
        return Prompt(token_ids=ids, images=(*after.images, *images) if after else images, text=text)

    def label(
        self,
        prompt: Prompt,
        detections: Sequence[Detection],
        *,
        images: int,
        mentions: Sequence[Mention] = (),
    ) -> Prompt:
        """The prompt with `shown` filled in for the mentions in the text of its last message.

        Detections get no label: what an image shows somewhere has no token of its own.
        """
        shown = np.full((6, len(prompt.token_ids)), -1, np.int64)
        self._mark_mentions(shown, prompt.token_ids, mentions)
        return replace(prompt, shown=shown)

    def crops(
        self,
        prompt: Prompt,
        detections: Sequence[Detection],
        *,
        images: int,
        count: int,
        rng: np.random.Generator,
    ) -> list[Prompt]:
        """None: there is no token that a label of a cut could stand at."""
        return []

    def hidden(self, rows: TokenRows) -> Tensor:
        """[B, L, D] last hidden states; padding positions hold 0.

        Raises:
            ModelError: the image tokens of a row are not those of its images.
        """
        return self.depths(rows).last

    def embedded(self, rows: TokenRows) -> Tensor:
        """[B, L, D] what the language model reads: embeddings of tokens, the image token's too."""
        embedded: Tensor = self.model.model.language_model.embed_tokens(rows.token_ids)
        return embedded

    def depths(self, rows: TokenRows) -> Depths:
        """`embedded` and `hidden` at once, and what lies between.

        Raises:
            ModelError: the image tokens of a row are not those of its images.
        """
        embedded = self.embedded(rows)
        segments = Segments.of(rows.segment_ids)
        token_ids = segments.cut(rows.token_ids)
        last, middle = run_layers(
            self.model.model.language_model,
            embedded.flatten(0, 1)[segments.places],
            torch.arange(token_ids.shape[1], device=token_ids.device)[None],
            self._views((token_ids == self.image_token_id) & segments.real, self._canvases(rows)),
            checkpoint=self.config.gradient_checkpointing,
        )
        return Depths(
            embedded=embedded, middle=segments.join(middle, embedded), last=segments.join(last, embedded)
        )

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingParams,
        seeds: Sequence[int | None] | None = None,
        *,
        cache: SessionCache | None = None,
        sessions: Sequence[Session | None] | None = None,
        precision: Precision = "float32",
    ) -> list[Sampled]:
        """Samples one completion per prompt: (token ids [T], log-probs [T] nats), same order.

        Prompts of similar length are computed together. See `VLMFamily.generate` for seeds.

        Args:
            cache: counts prompt tokens; nothing is kept between turns.
            sessions: not used.
            precision: of the vision tower's matrix products.

        Raises:
            ModelError: the image tokens of a prompt are not those of its images.
        """
        precision = reading(precision, self.model)
        own = seeds_of(sampling, seeds, len(prompts))
        stops = StopStrings(self.tokenizer, sampling.stop) if sampling.stop else None
        results: dict[int, Sampled] = {}
        for batch in batches_by_length([len(p.token_ids) for p in prompts]):
            hidden, decoder = self._read([prompts[i] for i in batch], sampling.max_new_tokens, precision)
            completions = sample_completions(
                hidden, decoder, self.logits, sampling, self.stop_token_ids, stops, [own[i] for i in batch]
            )
            results.update(zip(batch, completions, strict=True))
        if cache is not None:
            cache.computed += sum(len(p.token_ids) for p in prompts)
        return [results[i] for i in range(len(prompts))]

    def save_pretrained(self, directory: Path) -> None:
        """Writes a directory that plain transformers (and `build`) opens; adapters are merged in."""
        without_lora(self.model).save_pretrained(Path(directory))  # type: ignore[operator]
        self._save_processors(Path(directory))

    def save_description(self, directory: Path) -> None:
        """Writes everything of `save_pretrained` but the weights."""
        save_config(self.model, Path(directory))
        self._save_processors(Path(directory))

    def _save_processors(self, directory: Path) -> None:
        self.tokenizer.save_pretrained(directory)
        generation_config(self.tokenizer, self.model.config).save_pretrained(directory)
        form = self.images
        MllamaImageProcessorPil(
            size={"height": form.tile, "width": form.tile},
            max_image_tiles=form.max_tiles,
            image_mean=list(form.mean),
            image_std=list(form.std),
        ).save_pretrained(directory)

    @classmethod
    def generation_config(cls, directory: Path) -> GenerationConfig:
        """What tells transformers to answer as `generate` does, given a directory `save_pretrained` wrote."""
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        return generation_config(tokenizer, AutoConfig.from_pretrained(directory, local_files_only=True))

    def _canvases(self, rows: TokenRows) -> list[Tensor]:
        """The images of `rows`, row by row.

        Raises:
            ModelError: a row has another number of image tokens than of images.
        """
        valid = rows.image_sizes[..., 0] > 0
        tokens = ((rows.token_ids == self.image_token_id) & (rows.segment_ids > 0)).sum(1)
        for row, (wanted, got) in enumerate(zip(valid.sum(1).tolist(), tokens.tolist(), strict=True)):
            if wanted != got:
                raise ModelError(_mismatch("row", row, got, wanted))
        sizes = rows.image_sizes[valid].tolist()
        return [image[:high, :wide] for image, (high, wide) in zip(rows.images[valid], sizes, strict=True)]

    def _views(self, is_image: Tensor, canvases: Sequence[Tensor]) -> Views | None:
        """What the tokens of segments [S, T] see; None where there is no image at all."""
        if not canvases:
            return None
        checkpoint = self.config.gradient_checkpointing
        states, counts = image_states(self.model.model, canvases, self.images, checkpoint=checkpoint)
        return Views.of(is_image, states.to(self.model.dtype), counts)

    def _read(self, prompts: Sequence[Prompt], steps: int, precision: Precision) -> tuple[Tensor, _Decoder]:
        """Hidden states [B, D] of the prompts' last tokens, and what goes on from there."""
        language, device = self.model.model.language_model, self.device
        for i, prompt in enumerate(prompts):
            got = int((prompt.token_ids == self.image_token_id).sum())
            if got != len(prompt.images):
                raise ModelError(_mismatch("prompt", i, got, len(prompt.images)))
        width = max(len(p.token_ids) for p in prompts)
        token_ids = torch.full((len(prompts), width), self.pad_token_id, device=device)
        for row, prompt in enumerate(prompts):
            token_ids[row, : len(prompt.token_ids)] = torch.from_numpy(prompt.token_ids)
        lengths = torch.tensor([len(p.token_ids) for p in prompts], device=device)
        canvases = [torch.tensor(image, device=device) for p in prompts for image in p.images]
        with products(device, precision):
            views = self._views(token_ids == self.image_token_id, canvases)
        cache = DynamicCache()
        columns = torch.arange(width + steps, device=device)
        embedded = language.embed_tokens(token_ids)
        # Padding stands behind the prompts: they need no mask, but what is sampled must not see it.
        last, _ = run_layers(language, embedded, columns[None, :width], views, cache=cache)
        padding = (columns >= lengths[:, None]) & (columns < width)
        mask = torch.zeros(padding.shape, dtype=embedded.dtype, device=device)
        decoder = _Decoder(
            language=language,
            cache=cache,
            lengths=lengths,
            width=width,
            mask=mask.masked_fill_(padding, -torch.inf)[:, None, None],
            views=None if views is None else views.after(lengths),
        )
        return last[torch.arange(len(prompts), device=device), lengths - 1], decoder


@dataclass(slots=True, kw_only=True)
class _Decoder:
    """The rows that are still being written."""

    language: Any
    cache: DynamicCache
    lengths: Tensor  # int64 [B] of the prompts
    width: int  # columns the prompts take in the cache
    mask: Tensor  # [B, 1, 1, width + steps]
    views: Views | None

    def advance(self, ids: Tensor, step: int) -> Tensor:
        hidden, _ = run_layers(
            self.language,
            self.language.embed_tokens(ids[:, None]),
            (self.lengths + step)[:, None],
            self.views,
            mask=self.mask[..., : self.width + step + 1],
            cache=self.cache,
        )
        return hidden[:, 0]

    def keep(self, rows: Tensor) -> None:
        self.cache.batch_select_indices(rows)
        self.lengths, self.mask = self.lengths[rows], self.mask[rows]
        self.views = None if self.views is None else self.views.select(rows)


def _mismatch(what: str, index: int, tokens: int, images: int) -> str:
    return f"{what} {index} has {tokens} image tokens but {images} images; there must be one each"
