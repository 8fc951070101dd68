"""Lets a torchvision built for CUDA be imported beside a torch built for CPUs.

On PyPI torchvision has CUDA builds alone. Their Python half registers shapes of the operators `nms` and `qnms`, whose
other half cannot be loaded beside a CPU build of torch: `import torchvision` then ends in "operator torchvision::nms
does not exist", and with it the import of transformers' processors and of vLLM's models. Declaring the two operators
is enough, since nobody here calls them: the transforms are Python.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from pathlib import Path
from typing import Any


class _Declare(importlib.abc.MetaPathFinder):
    """Declares the operators just before torchvision is imported, if it is; finds nothing itself."""

    library: Any = None  # torch forgets declarations whose library is collected

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name != "torchvision" or self.library is not None:
            return
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if (
            spec is not None
            and spec.submodule_search_locations
            and not _loads(spec.submodule_search_locations[0])
        ):
            import torch

            library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            self.library = library


def _loads(folder: str) -> bool:
    """Whether the compiled half of the torchvision in `folder` fits this torch."""
    import torch

    try:
        for file in Path(folder).glob("_C*.so"):
            torch.ops.load_library(str(file))
    except OSError:
        return False
    return True


def declare_operators() -> None:
    """Has them declared when torchvision is first imported; costs nothing until then, and may be called twice."""
    if not any(isinstance(finder, _Declare) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Declare())
