"""vLLM itself: a model in memory, requests in, answers out, new weights in place.

vLLM is imported in the engine's process alone, and there when a model is made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import torch
from safetensors.torch import save_file
from torch import Tensor

from rllib_vlm.backends.vllm.messages import Answer, Ask, PolicyWeights
from rllib_vlm.backends.vllm.settings import VLLMSettings
from rllib_vlm.errors import ModelError
from rllib_vlm.files import new_folder
from rllib_vlm.models.hf_directory import WEIGHTS

_CPU_BLOCK_SIZE = 32  # vLLM's own is 128 on CPUs: prompts shorter than that would never be found in the cache
_CPU_CACHE_MIB = 256.0
_BANS = "rllib_vlm.backends.vllm.bans:BannedTokens"
_IMAGES = 1024  # that one prompt may have; prompts are held to their tokens before they come here


class VLLMModel:
    """One model of vLLM's, in this process, to be used by one thread.

    Args:
        settings: of the engine.
        weights: to begin with.
        folder: for the model's directory, which vLLM reads processors from as long as it runs; in memory, best.
        transport: a backend of vLLM's weight transfer to prepare for, or "files".

    Raises:
        ModelError: vLLM cannot be imported, or refuses the model or its settings.
    """

    def __init__(
        self, settings: VLLMSettings, weights: PolicyWeights, folder: Path, transport: str = "files"
    ) -> None:
        self._folder = folder
        self._write(weights)
        self.version = weights.version
        banned = _banned_tokens(self._model)
        self._vllm = _import_vllm()
        try:
            arguments = self._arguments(settings, banned, transport)
            self._engine: Any = self._vllm.LLMEngine.from_engine_args(arguments)
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            raise ModelError(f"vLLM does not start with this model and these settings: {error}") from error
        self._forget_weights()

    @property
    def busy(self) -> bool:
        """Whether an answer is under way."""
        return bool(self._engine.has_unfinished_requests())

    def add(self, key: str, ask: Ask) -> str:
        """Begins an answer; gives the name by which `abort` knows it.

        Raises:
            ModelError: vLLM refuses the prompt.
        """
        prompt: dict[str, Any] = {"prompt_token_ids": ask.token_ids.tolist()}
        if ask.images:
            prompt["multi_modal_data"] = {"image": [PIL.Image.fromarray(image) for image in ask.images]}
        try:
            return str(self._engine.add_request(key, prompt, self._parameters(ask)))
        except (ValueError, TypeError, self._vllm.VLLMValidationError) as error:
            raise ModelError(
                f"the engine refuses a prompt of {len(ask.token_ids)} ids and {len(ask.images)} images: {error}"
            ) from error

    def abort(self, name: str) -> None:
        """Ends an answer that nobody waits for."""
        self._engine.abort_request([name], internal=True)

    def step(self) -> list[tuple[str, Answer]]:
        """One token for every answer under way; gives those that are complete, by the key they were added with."""
        return [(done.request_id, self._answer(done)) for done in self._engine.step() if done.finished]

    def load(self, weights: PolicyWeights) -> None:
        """Puts new weights in place of the present ones, from a directory in shared memory; no answer is under way."""
        self._write(weights)
        self._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(self._model)})
        self._forget_weights()
        self.loaded(weights.version)

    def transfer(self, method: str, arguments: Mapping[str, Any]) -> None:
        """One call of vLLM's weight transfer on all its workers; the weights come past this process."""
        self._engine.collective_rpc(method, kwargs=dict(arguments))

    def loaded(self, version: int) -> None:
        """Forgets what was computed with the weights that were there before.

        Without this, keys and values of a shared prefix would be found in the cache though they are those of another
        model, and the encoder's cache would be asked for pictures that it does not have any more.
        """
        self._engine.reset_mm_cache()
        self._engine.reset_encoder_cache()
        self._engine.reset_prefix_cache()
        self.version = version

    @property
    def _model(self) -> Path:
        return self._folder / "model"

    def _write(self, weights: PolicyWeights) -> None:
        """The whole directory anew: vLLM takes the one it last loaded from for the model's, processors included."""
        tensors = {name: _tensor(value) for name, value in weights.fetched().items()}
        with new_folder(self._model) as folder:
            for name, content in weights.files.items():
                (folder / name).write_bytes(content)
            _add_video_processor(folder)
            if not torch.cuda.is_available():
                _untie(folder)
                tensors |= {name: tensors[other].clone() for name, other in weights.ties.items()}
            save_file(tensors, folder / WEIGHTS, {"format": "pt"})

    def _forget_weights(self) -> None:
        """The file is read, and shared memory is memory."""
        (self._model / WEIGHTS).unlink(missing_ok=True)

    def _arguments(self, settings: VLLMSettings, banned: list[int], transport: str) -> Any:
        on_gpu = torch.cuda.is_available()
        cache = settings.kv_cache_mib or (None if on_gpu else _CPU_CACHE_MIB)
        values: dict[str, Any] = {
            "model": str(self._model),
            "dtype": settings.dtype,
            "max_model_len": settings.max_model_len,
            "max_num_seqs": settings.max_num_seqs,
            "tensor_parallel_size": settings.tensor_parallel,
            "enable_prefix_caching": True,
            "limit_mm_per_prompt": {"image": _IMAGES, "video": 0},
            "logprobs_mode": "processed_logprobs",
            "logits_processors": [_BANS],
            "additional_config": {"banned_token_ids": banned},
            "generation_config": "vllm",  # not the checkpoint's own temperature and penalties
            "disable_log_stats": True,
            "seed": 0,
        }
        if settings.tensor_parallel > 1:
            # Within a placement group vLLM would start Ray actors of its own, for which nothing is reserved: the
            # GPUs are this actor's.
            values["distributed_executor_backend"] = "mp"
        if cache is not None:
            values["kv_cache_memory_bytes"] = int(cache * 2**20)
        if settings.block_size or not on_gpu:
            values["block_size"] = settings.block_size or _CPU_BLOCK_SIZE
        if on_gpu:
            values["gpu_memory_utilization"] = settings.gpu_memory_share
        else:
            values["enforce_eager"] = True
        if transport != "files":
            values["weight_transfer_config"] = {"backend": transport}
        return self._vllm.EngineArgs(**{**values, **settings.options})

    def _parameters(self, ask: Ask) -> Any:
        sampling = ask.sampling
        return self._vllm.SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p if sampling.temperature > 0 else 1.0,
            max_tokens=sampling.max_new_tokens,
            seed=ask.seed,
            logprobs=0,  # of the sampled token alone
            stop=list(sampling.stop) or None,
            stop_token_ids=list(ask.stop_token_ids),
            ignore_eos=True,
            detokenize=bool(sampling.stop),
            skip_special_tokens=False,
            output_kind=self._vllm.RequestOutputKind.FINAL_ONLY,
        )

    def _answer(self, done: Any) -> Answer:
        (output,) = done.outputs
        ids = [int(token) for token in output.token_ids]
        logprobs = [found[token].logprob for found, token in zip(output.logprobs, ids, strict=True)]
        return Answer(
            token_ids=np.array(ids, np.int64),
            logprobs=np.array(logprobs, np.float32),
            version=self.version,
            num_prompt_tokens=len(done.prompt_token_ids),
            num_cached_tokens=int(done.num_cached_tokens or 0),
        )


def _import_vllm() -> SimpleNamespace:
    """The names of vLLM that are used here.

    Raises:
        ModelError: what to install or to take away.
    """
    try:
        import vllm
        from vllm.exceptions import VLLMValidationError
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.llm_engine import LLMEngine
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelError(
            f"vLLM cannot be imported on the engine's machine: {error}. Beside a torch for CPUs the torchaudio and "
            "torchcodec that vLLM asks for are built for CUDA and break it: pip uninstall torchaudio torchcodec. "
            "docs/engines.md has the lines to install."
        ) from error

    return SimpleNamespace(
        EngineArgs=vllm.EngineArgs,
        SamplingParams=vllm.SamplingParams,
        RequestOutputKind=RequestOutputKind,
        LLMEngine=LLMEngine,
        VLLMValidationError=VLLMValidationError,
    )


def _banned_tokens(folder: Path) -> list[int]:
    """Ids that are never sampled, as the model's own directory tells transformers."""
    values = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    return list(values.get("suppress_tokens") or ())


def _add_video_processor(folder: Path) -> None:
    """Families here see pictures; vLLM builds the video half of a processor all the same."""
    file = folder / "video_preprocessor_config.json"
    if not file.exists():
        values = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        kept = {k: v for k, v in values.items() if not k.endswith("processor_type")}
        file.write_text(json.dumps(kept), encoding="utf-8")


def _untie(folder: Path) -> None:
    """Gives the output layer weights of its own.

    On CPUs vLLM keeps them in a packed form beside the embedding they are tied to, and when weights are loaded anew it
    packs the embedding alone: answers would come from the old output layer.
    """
    file = folder / "config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    for section in (values, values.get("text_config", {})):
        section["tie_word_embeddings"] = False
    file.write_text(json.dumps(values), encoding="utf-8")


def _tensor(value: Any) -> Tensor:
    """What the object store gives is read-only and may share memory; a file of weights wants neither."""
    return value.contiguous().clone() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
