"""Where the shipped files lie: `configs/` (fragments) and `tuned_examples/`, in a clone and when installed."""

from __future__ import annotations

from pathlib import Path

import rllib_vlm
from rllib_vlm.errors import UnknownNameError

_PACKAGE = Path(rllib_vlm.__file__).parent


def shipped(folder: str) -> Path:
    """`configs` or `tuned_examples`: inside the installed package, or beside it in a clone."""
    inside = _PACKAGE / folder
    return inside if inside.is_dir() else _PACKAGE.parent / folder


def examples() -> dict[str, Path]:
    """Every tuned example by name: its path below `tuned_examples/`, without the suffix."""
    root = shipped("tuned_examples")
    files = [f for f in root.rglob("*") if f.suffix in (".yaml", ".yml", ".py") and f.name != "__init__.py"]
    return {str(f.relative_to(root).with_suffix("")): f for f in sorted(files)}


def example(name: str) -> Path:
    """The file of one tuned example.

    Raises:
        UnknownNameError: there is none of that name.
    """
    known = examples()
    key = name.removesuffix(".yaml").removesuffix(".yml").removesuffix(".py").removeprefix("tuned_examples/")
    if key not in known:
        raise UnknownNameError("tuned_examples", name, known, hint="See `rllib example list`.")
    return known[key]


def fragment(name: str, beside: Path) -> Path | None:
    """The file `include: [name]` means: beside the including file first, then among the shipped `configs/`."""
    for root in (beside, shipped("configs")):
        for candidate in (root / name, root / f"{name}.yaml", root / f"{name}.yml"):
            try:
                if candidate.is_file():
                    return candidate
            except OSError:  # such as a name too long for the file system
                continue
    return None


def fragments() -> dict[str, Path]:
    """Every shipped fragment by the name `include` knows it under."""
    root = shipped("configs")
    return {str(f.relative_to(root).with_suffix("")): f for f in sorted(root.rglob("*.y*ml"))}
