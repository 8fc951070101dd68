"""The Qwen2.5-VL family: released checkpoints and tiny models of the same class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, Qwen2VLImageProcessorPil

from rllib_vlm.models.adapters import without_lora
from rllib_vlm.models.base import Depths, TokenRows
from rllib_vlm.models.checkpoint import save_config
from rllib_vlm.models.decoding import batches_by_length, seeds_of
from rllib_vlm.models.precision import Precision, products, reading
from rllib_vlm.models.qwen2_5_vl.chat import chatml
from rllib_vlm.models.qwen2_5_vl.config import Loaded, ModelConfig, load
from rllib_vlm.models.qwen2_5_vl.decoder import angles, run_layers, segment_mask
from rllib_vlm.models.qwen2_5_vl.generate import sample_batch
from rllib_vlm.models.qwen2_5_vl.positions import rope_positions
from rllib_vlm.models.qwen2_5_vl.prefill import Prefill, prefill
from rllib_vlm.models.qwen2_5_vl.segments import Segments
from rllib_vlm.models.qwen2_5_vl.tokens import banned_token_ids, generation_config
from rllib_vlm.models.qwen2_5_vl.vision import image_features
from rllib_vlm.models.sessions import Content, Past, Session, SessionCache, Turns
from rllib_vlm.models.stopping import StopStrings
from rllib_vlm.models.text import TextSide
from rllib_vlm.types import Detection, Mention, Message, Prompt, SamplingParams

CROP = 2  # image tokens along a side of a cut around a thing
_LEAST_PIXELS, _MOST_SHARE = (
    32.0,
    0.5,
)  # a thing that is cut out has so many pixels, at most this share of the cut
_EDGE = 0.15  # of a cut: as near as this the thing's centre may lie to its edge


class Qwen25VL(TextSide):
    """Qwen2.5-VL (arXiv 2502.13923) behind the `VLMFamily` protocol.

    Example::

        family = Qwen25VL.build({"size": "tiny", "tokenizer_words": ("move_ahead", "done")})
        prompt = family.encode([Message(role="user", text="<image>go to the mug", images=(frame,))])
        [(ids, logprobs)] = family.generate([prompt], SamplingParams(max_new_tokens=8))
        family.decode(ids)

    `generate` samples from `apply_sampling(logits(hidden(rows)), sampling)`; a learner that wants
    the same log-probs uses `rllib_vlm.models.sampling.token_logprobs` with the same `SamplingParams`.
    """

    packs = True
    settings = ModelConfig
    load = staticmethod(load)
    labels_images = True
    served_by = ("vllm",)

    def __init__(self, loaded: Loaded, config: ModelConfig) -> None:
        ids = loaded.model.config
        self.image_token_id = int(ids.image_token_id)
        vision = (ids.vision_start_token_id, self.image_token_id, ids.vision_end_token_id)
        super().__init__(
            loaded.model,
            loaded.tokenizer,
            chatml(loaded.tokenizer, vision),
            banned=banned_token_ids(loaded.tokenizer, ids),
        )
        self.images = loaded.images
        self.config = config

    @property
    def device(self) -> torch.device:
        return self.model.model.language_model.embed_tokens.weight.device

    def encode(self, messages: Sequence[Message], after: Prompt | None = None) -> Prompt:
        """Messages to a prompt that ends where the assistant's answer begins; `after` as in `VLMFamily.encode`.

        Raises:
            ModelError: a message's `<image>` and images differ in number, or an image is malformed.
        """
        images = tuple(self.images.resize(image) for message in messages for image in message.images)
        counts = [self.images.tokens(*image.shape[:2]) for image in images]
        ids, text = self._chat.prompt(messages, counts, self.stop_token_ids, after)
        return Prompt(token_ids=ids, images=(*after.images, *images) if after else images, text=text)

    def label(
        self,
        prompt: Prompt,
        detections: Sequence[Detection],
        *,
        images: int,
        mentions: Sequence[Mention] = (),
    ) -> Prompt:
        """The prompt with `shown` filled in.

        The detections are of its last `images` images; the mentions stand in the text of its last message, in
        this order. A mention that is not found (its words run into others) gets no label.
        """
        shown = np.full((6, len(prompt.token_ids)), -1, np.int64)
        where = np.flatnonzero(prompt.token_ids == self.image_token_id)
        grids = [tuple(size // self.images.unit for size in image.shape[:2]) for image in prompt.images]
        starts = np.cumsum([0, *(rows * columns for rows, columns in grids)])
        first = len(grids) - images
        shown[-1, where[starts[first] :]] = 0
        self._mark_mentions(shown, prompt.token_ids, mentions)
        for found in reversed(detections):
            rows, columns = grids[first + found.image]
            row, column = min(int(found.y * rows), rows - 1), min(int(found.x * columns), columns - 1)
            at = where[starts[first + found.image] + row * columns + column]
            words = self._words(f" {found.words}")
            place = list(self._words(f" {found.place}")[:3]) if found.place else []
            shown[:, at] = [words[0], words[-1], *place, *[-1] * (3 - len(place)), found.named]
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
        """`count` labelled prompts per detection, each of one small cut around it out of the last `images` images.

        A cut is `CROP` x `CROP` image tokens (less where the image is smaller) at a place drawn so that the
        thing is not at its edge; what else it shows is labelled too. Things that do not fit into a cut, or are too
        small to be told apart, get none. Only what things are is told: a cut says nothing of where the robot
        would find them.
        """
        views = prompt.images[len(prompt.images) - images :]
        start, end = self.model.config.vision_start_token_id, self.model.config.vision_end_token_id
        found = []
        for detection in detections:
            view = views[detection.image]
            size = np.array(view.shape[:2])
            cut = np.minimum(CROP * self.images.unit, size)
            if detection.pixels and not _LEAST_PIXELS <= detection.pixels <= _MOST_SHARE * cut.prod():
                continue
            ids = np.array(
                [start, *[self.image_token_id] * self.images.tokens(*map(int, cut)), end], np.int64
            )
            for _ in range(count):
                at = np.array([detection.y, detection.x]) * size - rng.uniform(_EDGE, 1.0 - _EDGE, 2) * cut
                top, left = np.clip(at.round().astype(int), 0, size - cut)
                inside = [
                    replace(other, image=0, x=x, y=y, place="", named=False)
                    for other in detections
                    if other.image == detection.image
                    and 0.0 <= (x := (other.x * size[1] - left) / cut[1]) < 1.0
                    and 0.0 <= (y := (other.y * size[0] - top) / cut[0]) < 1.0
                ]
                image = np.ascontiguousarray(view[top : top + cut[0], left : left + cut[1]])
                found.append(self.label(Prompt(token_ids=ids, images=(image,)), inside, images=1))
        return found

    def hidden(self, rows: TokenRows) -> Tensor:
        """[B, L, D] last hidden states; padding positions hold anything.

        Raises:
            ModelError: the image tokens of a row are not those of its images.
        """
        return self.depths(rows).last

    def embedded(self, rows: TokenRows) -> Tensor:
        """[B, L, D] what the language model reads: at image tokens the vision tower's features.

        Raises:
            ModelError: the image tokens of a row are not those of its images.
        """
        groups, grids, owners = self._group_rows(rows)
        return self._embed(rows.token_ids, rows.segment_ids, groups, grids, owners)[0]

    def depths(self, rows: TokenRows) -> Depths:
        """`embedded` and `hidden` at once, and what lies between.

        Raises:
            ModelError: the image tokens of a row are not those of its images.
        """
        groups, grids, owners = self._group_rows(rows)
        x, positions = self._embed(rows.token_ids, rows.segment_ids, groups, grids, owners)
        language = self.model.model.language_model
        if self.config.plain_forward:
            out = language(
                inputs_embeds=x,
                attention_mask={"full_attention": segment_mask(rows.segment_ids, x.dtype)},
                position_ids=positions,
                use_cache=False,
                output_hidden_states=True,
            )
            middle = out.hidden_states[len(language.layers) // 2]
            return Depths(embedded=x, middle=middle, last=out.last_hidden_state)
        segments = Segments(rows.segment_ids, self._contents(rows, groups, grids), rows.read)
        line = x.flatten(0, 1).index_select(0, segments.tokens)[None]
        cos, sin = angles(language, positions.flatten(1)[:, None, segments.tokens], x)
        checkpoint = self.config.gradient_checkpointing
        last, middle = run_layers(
            language, line, cos, sin, segments.attend, checkpoint=checkpoint, read=segments.read
        )
        return Depths(embedded=x, middle=segments.in_place(middle, x), last=segments.last_in_place(last, x))

    def _contents(self, rows: TokenRows, groups: list[tuple[Tensor, Tensor]], grids: Tensor) -> Tensor:
        """int64 [B, L], two alike where the model reads the same: at image tokens below 0, by the image."""
        if not groups:
            return rows.token_ids
        of = torch.zeros(len(grids), dtype=torch.int64, device=grids.device)
        count = 0
        for order, images in groups:
            _, same = images.flatten(1).unique(dim=0, return_inverse=True)
            of[order] = count + same
            count += len(order)
        is_image = (rows.token_ids == self.image_token_id) & (rows.segment_ids > 0)
        contents = rows.token_ids.clone()
        contents[is_image] = -1 - of.repeat_interleave(grids.prod(1))
        return contents

    @property
    def output_weight(self) -> Tensor | None:
        """[V, D] of the output layer; None where it has adapters, or parameters may be sharded."""
        head = self.model.lm_head
        plain = type(head) is nn.Linear and head.bias is None and not self.config.plain_forward
        return head.weight if plain else None

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
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Samples one completion per prompt: (token ids [T], log-probs [T] nats), same order.

        Prompts with about as much to compute are computed together. See `VLMFamily.generate` for seeds.

        Args:
            cache: where keys and values of earlier turns are found, and those of this one kept.
            sessions: the conversation of each prompt; None for one that is nobody's.
            precision: of the matrix products that read pictures and prompts (`models.precision`).
        """
        precision = reading(precision, self.model)
        own = seeds_of(sampling, seeds, len(prompts))
        turns = Turns(
            SessionCache() if cache is None else cache,
            prompts,
            sessions or [None] * len(prompts),
            lambda prompt: Content.of(prompt, self.image_token_id, self.images.tokens),
        )
        stops = StopStrings(self.tokenizer, sampling.stop) if sampling.stop else None
        results: dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]] = {}
        for chunk in batches_by_length([len(p.token_ids) for p in prompts], turns.kept):
            with products(self.device, precision):
                tokens = self._prefill([prompts[i] for i in chunk], [turns.pasts[i] for i in chunk])
            turns.count(chunk, tokens.computed)
            completions = sample_batch(
                self.model.model.language_model,
                tokens,
                self.logits,
                sampling,
                self.stop_token_ids,
                stops,
                [own[i] for i in chunk],
                turns.keeper(chunk),
                precision,
            )
            results.update(zip(chunk, completions, strict=True))
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
        Qwen2VLImageProcessorPil(
            patch_size=form.patch,
            merge_size=form.merge,
            temporal_patch_size=form.temporal,
            size={"shortest_edge": form.min_pixels, "longest_edge": form.max_pixels},
            image_mean=list(form.mean),
            image_std=list(form.std),
        ).save_pretrained(directory)

    @classmethod
    def generation_config(cls, directory: Path) -> GenerationConfig:
        """What tells transformers to answer as `generate` does, given a directory `save_pretrained` wrote."""
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        return generation_config(tokenizer, AutoConfig.from_pretrained(directory, local_files_only=True))

    def _prefill(self, prompts: Sequence[Prompt], pasts: Sequence[Past | None]) -> Prefill:
        return prefill(
            prompts,
            pasts,
            pad=self.pad_token_id,
            image_token=self.image_token_id,
            unit=self.images.unit,
            device=self.device,
            embed=self._features,
        )

    def _group_rows(self, rows: TokenRows) -> tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor]:
        """The images of `rows` by size, with their grids [N, 2] and rows [N]."""
        valid = rows.image_sizes[..., 0] > 0
        owners = valid.nonzero()[:, 0]
        sizes = rows.image_sizes[valid]
        grids = sizes // self.images.unit
        if not len(sizes):
            return [], grids, owners
        images = rows.images[valid]
        groups = []
        for size in sizes.unique(dim=0):
            order = (sizes == size).all(1).nonzero()[:, 0]
            height, width = size.tolist()
            picked = images if len(order) == len(images) else images[order]
            groups.append((order, picked[:, :height, :width]))
        return groups, grids, owners

    def _embed(
        self,
        token_ids: Tensor,
        segment_ids: Tensor,
        groups: list[tuple[Tensor, Tensor]],
        grids: Tensor,
        owners: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Embeddings [B, L, D] with image features in place, and positions [3, B, L]."""
        is_image = (token_ids == self.image_token_id) & (segment_ids > 0)
        positions = rope_positions(is_image, segment_ids, grids, owners)
        return self._features(token_ids, is_image, groups), positions

    def _features(self, token_ids: Tensor, is_image: Tensor, groups: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Embeddings [B, L, D] with image features in place."""
        x = self.model.model.language_model.embed_tokens(token_ids)
        if not groups:
            return x
        features = image_features(
            self.model.model.visual,
            groups,
            self.images,
            plain=self.config.plain_forward,
            checkpoint=self.config.gradient_checkpointing,
        )
        where = is_image.flatten().nonzero()[:, 0]
        return x.flatten(0, 1).index_copy(0, where, features.to(x.dtype)).view_as(x)
