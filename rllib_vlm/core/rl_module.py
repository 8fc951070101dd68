"""A vision-language model as an RLlib module: it answers prompts, scores tokens and values states."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow.fs
import torch
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, ValueFunctionAPI
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.utils.annotations import override
from safetensors.torch import load_file, save_file
from torch import Tensor

from rllib_vlm import registry
from rllib_vlm.backends.base import GenerationBackend, GenerationRequest
from rllib_vlm.batching.rows import (
    NAME,
    NAMED,
    PLACE,
    Label,
    gather_predicting,
    predicting,
    scatter_to_tokens,
)
from rllib_vlm.core.columns import VLMColumns
from rllib_vlm.core.optimizers import VALUE_HEAD
from rllib_vlm.core.scoring import OutputLayer, score_tokens
from rllib_vlm.core.value_head import ValueHeadConfig, first_of_turn, spread
from rllib_vlm.errors import ModelError
from rllib_vlm.models.adapters import ValueHead
from rllib_vlm.models.base import TokenRows, VLMFamily
from rllib_vlm.models.precision import products
from rllib_vlm.types import Completion, Prompt, SamplingParams

HF_DIRECTORY = "hf"
VALUE_HEAD_FILE = "value_head.safetensors"
TRAINED, FROZEN = (
    "trained",
    "frozen",
)  # components of the state: weights that learn, and those that never change
# Keys of `model_config` that are not the family's.
MODULE_KEYS = frozenset(
    {
        "family",
        "value_head",
        "backend",
        "backend_options",
        "temperature",
        "top_p",
        "max_new_tokens",
        "logprob_chunk",
    }
)
# An image token in about ninety shows what the instruction names; so weighted, both count.
_NAMED_WEIGHT, _OTHER_WEIGHT = 20.0, 0.5


class VLMRLModule(TorchRLModule, InferenceOnlyAPI, ValueFunctionAPI):
    """Actor, and in a learner also critic, around one `VLMFamily`.

    `model_config` holds, beside what the family's `build` reads (`checkpoint`, `size`, `freeze`, ...):

    - `family`: a name of the table `models`.
    - `value_head`: see `ValueHeadConfig`; false or nothing for algorithms without a critic.
    - `backend`, `backend_options`: what generates on env runners, a name of the table `backends`.
    - `temperature`, `top_p`: of the distribution whose log-probs `forward_train` gives.
    - `logprob_chunk`: token positions whose logits are held at a time.

    Raises:
        ModelError: the family cannot build the model.
    """

    @override(TorchRLModule)
    def setup(self) -> None:
        config = dict(self.model_config)
        if self.inference_only and hasattr(self._backend_class(), "served_as"):
            config["weights"] = False  # engines have them
        self.family: VLMFamily = self._build_family(config)
        self.model = self.family.model
        self.sampling = SamplingParams(
            temperature=config.get("temperature", 1.0), top_p=config.get("top_p", 1.0)
        )
        self._chunk = int(config.get("logprob_chunk", 1024))
        self._backend: GenerationBackend | None = None
        self.store: WeightStore | None = None
        self.policy_version = 0
        self._critic = ValueHeadConfig.of(config.get("value_head"))
        if self._critic is not None and not self.inference_only:
            self.value_head = ValueHead(self.family.hidden_size, self._critic.width)

    @staticmethod
    def _build_family(config: Mapping[str, Any]) -> VLMFamily:
        own = {key: value for key, value in config.items() if key not in MODULE_KEYS}
        family: VLMFamily = registry.resolve("models", config["family"]).build(own)
        return family

    @property
    def has_value_head(self) -> bool:
        return getattr(self, "value_head", None) is not None

    @override(InferenceOnlyAPI)
    def get_non_inference_attributes(self) -> list[str]:
        return ["value_head"]

    # Generation (env runners).

    @property
    def backend(self) -> GenerationBackend:
        """What generates completions; started when it is first asked for."""
        if self._backend is None:
            make = self._backend_class()
            self._backend = make(self.family, **self.model_config.get("backend_options", {}))
        return self._backend

    def _backend_class(self) -> Any:
        return registry.resolve("backends", self.model_config.get("backend", "hf"))

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[Completion]:
        """One completion per prompt, in order."""
        futures = [self.backend.submit(GenerationRequest(prompt=p, sampling=sampling)) for p in prompts]
        while not all(future.done() for future in futures):
            self.backend.poll()
        return [future.result() for future in futures]

    @override(TorchRLModule)
    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        greedy = SamplingParams(temperature=0.0, max_new_tokens=self._max_new_tokens())
        return {VLMColumns.ACTIONS: self.generate(batch[VLMColumns.PROMPTS], greedy)}

    @override(TorchRLModule)
    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        sampling = SamplingParams(
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            max_new_tokens=self._max_new_tokens(),
        )
        return {VLMColumns.ACTIONS: self.generate(batch[VLMColumns.PROMPTS], sampling)}

    def _max_new_tokens(self) -> int:
        return int(self.model_config.get("max_new_tokens", SamplingParams().max_new_tokens))

    def load_policy(self, state: Mapping[str, Any], *, version: int) -> None:
        """New weights from a learner, for every completion asked for from now on."""
        tensors = as_tensors({name: value for name, value in state.items() if name.startswith("model.")})
        weights = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        self.backend.load_weights(weights, version=version)
        self.policy_version = version

    def rest(self) -> None:
        """Frees what generation holds of the GPU, until `wake`; weights may be loaded meanwhile."""
        self.backend.sleep()

    def wake(self) -> None:
        self.backend.wake_up()

    def close(self) -> None:
        """Ends the backend, if one was started."""
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    # Scoring (learners). An engine that keeps weights in parts has them together only in passes of its own.

    @override(TorchRLModule)
    def forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """See `_forward_train`."""
        own = super().forward_train
        found: dict[str, Any] = (
            own(batch, **kwargs) if self.store is None else self.store.run(own, batch, **kwargs)
        )
        return found

    @override(TorchRLModule)
    def _forward_train(
        self,
        batch: dict[str, Any],
        *,
        with_entropy: bool = False,
        with_values: bool | None = None,
        sampling: SamplingParams | None = None,
        precision: str = "float32",
        with_grounding: bool = False,
        with_logprobs: bool = True,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Log-probs, and where asked entropy and values, of the sampled tokens of a packed batch.

        Args:
            batch: tensors as from `batching.packing`; sampled are the tokens with a turn id.
            with_entropy: also the entropy [B, L] of the distributions the tokens came from.
            with_values: also values [B, L]; by default if there is a value head.
            sampling: the distribution; by default the one that sampled. Imitation uses temperature 1.
            precision: of the model's matrix products (`models.precision`); log-probs stay float32.
            with_grounding: also `GROUNDING` and `REFERRING` [B, L], where a demonstration says what image tokens show.
            with_logprobs: False leaves the language model out, and with it all but the names in `GROUNDING`.

        Returns:
            `LOGPROBS` [B, L] nats, and `ENTROPY`, `VALUES`; 0 off the sampled tokens.
        """
        mask = batch["turn_ids"] >= 0
        with products(batch["token_ids"].device, precision):
            if not with_logprobs:
                embedded = self.family.embedded(_rows(batch))
            else:
                depths = self.family.depths(_rows(batch))
        if not with_logprobs:
            return {VLMColumns.GROUNDING: self._names(embedded, batch)}
        hidden = depths.last
        states = gather_predicting(hidden, mask)
        scores = score_tokens(
            states,
            self._output_layer(),
            batch["token_ids"][mask],
            sampling or self.sampling,
            chunk=self._chunk,
            with_entropy=with_entropy,
        )
        out = {VLMColumns.LOGPROBS: scatter_to_tokens(scores.logprobs, mask)}
        if scores.entropy is not None:
            out[VLMColumns.ENTROPY] = scatter_to_tokens(scores.entropy, mask)
        if with_grounding:
            out[VLMColumns.GROUNDING] = self._names(depths.embedded, batch) + self._places(
                depths.middle, batch
            )
            out[VLMColumns.REFERRING] = self._referring(depths.middle, batch)
        if self.has_value_head if with_values is None else with_values:
            out[VLMColumns.VALUES] = self._values(states, mask, batch)
        return out

    def _output_layer(self) -> OutputLayer:
        family = self.family
        return OutputLayer(
            logits=family.logits,
            vocab_size=family.vocab_size,
            weight=family.output_weight,
            banned=family.banned_token_ids,
        )

    @override(ValueFunctionAPI)
    def compute_values(
        self,
        batch: dict[str, Any],
        embeddings: Any = None,
        *,
        head_only: bool = False,
        precision: str = "float32",
    ) -> Tensor:
        """[B, L] values of the states before the sampled tokens of a packed batch, 0 elsewhere.

        Args:
            batch: as of `_forward_train`.
            embeddings: RLlib's; not used.
            head_only: gradients reach the value head alone.
            precision: as of `_forward_train`.
        """
        if self.store is not None:
            found: Tensor = self.store.run(self._read_values, batch, head_only=head_only, precision=precision)
            return found
        return self._read_values(batch, head_only=head_only, precision=precision)

    def _read_values(self, batch: dict[str, Any], *, head_only: bool, precision: str) -> Tensor:
        mask = batch["turn_ids"] >= 0
        trains = torch.is_grad_enabled() and not head_only
        with torch.set_grad_enabled(trains), products(batch["token_ids"].device, precision):
            hidden = self.family.hidden(_rows(batch))
        return self._values(gather_predicting(hidden, mask), mask, batch)

    # What image tokens show is taught where it is needed: names at the output of the vision tower, so that
    # attention can compare them with words; where a thing is, and whether the instruction names it, in the
    # middle of the language model, so that the layers above can read them off. Without these, telling apart
    # what is named from what is not is learnt from answers alone many times later (docs/results.md).

    def _names(self, embedded: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        mask = batch["grounding_mask"]
        return scatter_to_tokens(self._chosen(embedded[mask], batch, NAME, mask), mask)

    def _places(self, middle: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        mask = batch["grounding_mask"]
        return scatter_to_tokens(self._chosen(middle[mask], batch, PLACE, mask), mask)

    def _chosen(self, features: Tensor, batch: Mapping[str, Tensor], label: Label, mask: Tensor) -> Tensor:
        """[N] mean log-probability of the words of a label given features [N, D]; 0 where there are none.

        Chosen among the words of the optimizer step (`batch[label.words]`, sorted; without it, among those of
        the batch), as CLIP does (Radford et al. 2021): against the whole vocabulary, all words that name nothing
        would be pushed the same way, and grow alike.
        """
        words = batch["labels"][mask][:, label.rows]
        given = words >= 0
        if not given.any():
            return features.sum(-1).float() * 0.0  # still part of the graph
        candidates = batch.get(label.words)
        if candidates is None:
            candidates = words[given].unique()
        chosen = torch.searchsorted(candidates, words.contiguous()).clamp(max=len(candidates) - 1)
        scores = self.family.word_logits(features, candidates).log_softmax(-1).gather(-1, chosen)
        return torch.where(given, scores, 0.0).sum(-1) / given.sum(-1).clamp(min=1)

    def _referring(self, middle: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Balanced: most image tokens show something else."""
        mask = batch["referring_mask"]
        named = batch["labels"][mask][:, NAMED]
        words = torch.tensor(self.family.referring_words, device=middle.device)
        scores = self.family.word_logits(middle[mask], words).log_softmax(-1)
        right = scores.gather(-1, named[:, None])[:, 0]
        return scatter_to_tokens(torch.where(named > 0, _NAMED_WEIGHT, _OTHER_WEIGHT) * right, mask)

    def _values(self, states: Tensor, mask: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Of states [N, D] that predict the tokens under `mask`."""
        if not self.has_value_head:
            raise ModelError("this module has no value head: set rl_module.model_config.value_head to true")
        assert self._critic is not None
        if self._critic.detach:
            states = states.detach()
        if self._critic.per == "turn":
            first = first_of_turn(mask, batch["turn_ids"], batch["segment_ids"])
            values = spread(self.value_head(states[first[mask]]), first, mask)
        else:
            values = self.value_head(states)
        return scatter_to_tokens(values, mask)

    # State and checkpoints.

    @override(TorchRLModule)
    def get_state(
        self,
        components: Any = None,
        *,
        not_components: Any = None,
        inference_only: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """All weights, or one of the components `TRAINED` (adapters, parts that are not frozen) and `FROZEN`."""
        learns = {name for name, p in self.named_parameters(remove_duplicate=False) if p.requires_grad}
        wanted = {
            part for part in (TRAINED, FROZEN) if self._check_component(part, components, not_components)
        }
        return {
            name: _portable(tensor)
            for name, tensor in self._weights().items()
            if (TRAINED if name in learns else FROZEN) in wanted
            and not (inference_only and name.startswith("value_head."))
        }

    @override(TorchRLModule)
    def set_state(self, state: Mapping[str, Any]) -> None:
        """Loads weights in place.

        Raises:
            ModelError: weights of the model are missing in `state`.
        """
        found = self._load_weights(as_tensors(state))
        missing = [name for name in found.missing_keys if not name.startswith("value_head.")]
        if missing:
            raise ModelError(
                f"the state lacks {len(missing)} weights of this model, e.g. {missing[0]!r}: it is of another "
                "architecture. Build the module with the model_config the state came from."
            )

    @override(RLModule)
    def save_to_path(
        self,
        path: str | Path | None = None,
        *,
        state: Mapping[str, Any] | None = None,
        filesystem: pyarrow.fs.FileSystem | None = None,
        use_msgpack: bool = False,
    ) -> str:
        """Writes a checkpoint whose `hf/` plain transformers opens; the critic stands beside it.

        The weights written are the module's own; `state` only says that RLlib gathered them already.
        """
        marker = {"format": HF_DIRECTORY}
        where = super().save_to_path(path, state=marker, filesystem=filesystem, use_msgpack=use_msgpack)
        with tempfile.TemporaryDirectory() as folder:
            whole = self if self.store is None or self.store.whole else self.like(self.store.weights())
            whole.family.save_pretrained(Path(folder) / HF_DIRECTORY)
            if whole.has_value_head:
                head = {k: v.detach().cpu().contiguous() for k, v in whole.value_head.state_dict().items()}
                save_file(head, Path(folder) / VALUE_HEAD_FILE)
            pyarrow.fs.copy_files(
                folder,
                where,
                source_filesystem=pyarrow.fs.LocalFileSystem(),
                destination_filesystem=filesystem or pyarrow.fs.LocalFileSystem(),
            )
        return where

    @override(RLModule)
    def restore_from_path(
        self,
        path: str | Path,
        *,
        component: str | None = None,
        filesystem: pyarrow.fs.FileSystem | None = None,
        **kwargs: Any,
    ) -> None:
        """Loads what `save_to_path` wrote.

        Raises:
            ModelError: there is no such checkpoint.
        """
        with tempfile.TemporaryDirectory() as folder:
            if filesystem is not None and not isinstance(filesystem, pyarrow.fs.LocalFileSystem):
                pyarrow.fs.copy_files(str(path), folder, source_filesystem=filesystem)
                path = folder
            root = Path(path)
            if not (root / HF_DIRECTORY).is_dir():
                raise ModelError(f"{root} holds no {HF_DIRECTORY}/: it is not a checkpoint of this module")
            config = {k: v for k, v in self.model_config.items() if k != "size"}
            saved = self._build_family({**config, "checkpoint": str(root / HF_DIRECTORY)})
            weights = {f"model.{name}": tensor for name, tensor in saved.model.state_dict().items()}
            head = root / VALUE_HEAD_FILE
            if self.has_value_head and head.is_file():
                weights |= {f"{VALUE_HEAD}{name}": tensor for name, tensor in load_file(head).items()}
            self.set_state(weights)

    def _weights(self) -> Mapping[str, Tensor]:
        return self.state_dict() if self.store is None else self.store.weights()

    def _load_weights(self, state: Mapping[str, Tensor]) -> Any:
        return (
            self.load_state_dict(state, strict=False)
            if self.store is None
            else self.store.load_weights(state)
        )

    def like(self, weights: Mapping[str, Tensor]) -> VLMRLModule:
        """A module of the same kind in one piece, with these weights, in the same place."""
        module = type(self)(
            observation_space=self.observation_space,
            action_space=self.action_space,
            model_config=self.model_config,
            catalog_class=None,
        )
        module.load_state_dict(weights)
        return module.to(next(iter(self.parameters())).device)


class WeightStore(Protocol):
    """An engine that keeps a module's weights in parts, or float32 copies of them."""

    whole: bool  # the module's own weights are all there

    def run(self, read: Callable[..., Any], batch: Any, **kwargs: Any) -> Any:
        """`read(batch, **kwargs)` where weights are together."""

    def weights(self) -> Mapping[str, Tensor]:
        """All of them, whole."""

    def load_weights(self, state: Mapping[str, Tensor]) -> Any:
        """Like `load_state_dict(state, strict=False)`."""


def _rows(batch: Mapping[str, Tensor]) -> TokenRows:
    """What a family reads of a batch; wanted are the states that predict its sampled tokens."""
    return TokenRows(
        token_ids=batch["token_ids"],
        segment_ids=batch["segment_ids"],
        images=batch["images"],
        image_sizes=batch["image_sizes"],
        read=predicting(batch["turn_ids"] >= 0),
    )


def _portable(tensor: Tensor) -> Any:
    """As NumPy, which Ray shares without copies; types NumPy lacks (bfloat16) stay tensors."""
    tensor = tensor.detach().cpu()
    try:
        return tensor.numpy()
    except TypeError:
        return tensor


def as_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The arrays of a state as tensors on the same memory, to be read and not written."""
    with warnings.catch_warnings():
        # Arrays from Ray's object store cannot be written, which torch warns of; a copy of all weights would cost as
        # much as sending them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")
        return {
            name: value if isinstance(value, Tensor) else torch.from_numpy(np.asarray(value))
            for name, value in state.items()
        }
