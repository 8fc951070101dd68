"""Imports point down only, siblings of a floor keep apart, and `import rllib_vlm` is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rllib_vlm

PACKAGE = Path(rllib_vlm.__file__).parent
FLOORS = {
    "types": 0,
    "errors": 0,
    "registry": 0,
    "files": 0,
    "json_object": 0,
    "sims": 1,
    "prompts": 1,
    "data": 1,
    "credit": 1,
    "losses": 1,
    "batching": 1,
    "worlds": 1,
    "models": 2,
    "backends": 2,
    "core": 3,
    "connectors": 3,
    "env": 3,
    "algorithms": 4,
    "callbacks": 4,
    "guard": 4,
    "diagnosis": 4,
    "config": 5,
    "cli": 5,
}
ABOVE_RAY = 3  # the lowest floor that may know Ray
ACTORS = "rllib_vlm.backends.vllm"  # below it, engines are actors
FILES = sorted(PACKAGE.rglob("*.py"))


def room(module: str) -> str:
    """`rllib_vlm.sims.household.env` -> `sims`."""
    return module.split(".")[1]


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def imports(file: Path) -> set[str]:
    """Every module a file imports, anywhere in it, `TYPE_CHECKING` blocks included."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            assert node.module is not None
            found |= {
                f"{node.module}.{alias.name}" if node.module == "rllib_vlm" else node.module
                for alias in node.names
            }
    return found


def violations(module: str, imported: set[str]) -> list[str]:
    """What a module imports from above it, from a sibling of floor 1, or of Ray below floor 3."""
    own = room(module)
    wrong = []
    for name in sorted(imported):
        knows_ray = FLOORS[own] >= ABOVE_RAY or module.startswith(f"{ACTORS}.")
        if name.split(".")[0] == "ray" and not knows_ray:
            wrong.append(f"{module} (floor {FLOORS[own]}) imports {name}")
        if not name.startswith("rllib_vlm.") or room(name) not in FLOORS or room(name) == own:
            continue
        above = FLOORS[room(name)] > FLOORS[own]
        sibling = FLOORS[own] == FLOORS[room(name)] == 1
        if above or sibling:
            wrong.append(f"{module} (floor {FLOORS[own]}) imports {name} (floor {FLOORS[room(name)]})")
    return wrong


def test_every_room_has_a_floor():
    rooms = {room(module_of(f)) for f in FILES if f != PACKAGE / "__init__.py"}
    assert rooms <= FLOORS.keys(), "a new room needs its floor in this table and in pyproject.toml"


def test_imports_point_down_only():
    wrong = [v for f in FILES if f != PACKAGE / "__init__.py" for v in violations(module_of(f), imports(f))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("rllib_vlm.sims.base", "rllib_vlm.core.columns"),
        ("rllib_vlm.sims.base", "rllib_vlm.prompts.base"),
        ("rllib_vlm.credit.gae", "ray.rllib"),
        ("rllib_vlm.backends.hf", "ray"),
        ("rllib_vlm.core.learner", "rllib_vlm.algorithms"),
        ("rllib_vlm.registry", "rllib_vlm.sims"),
    ],
)
def test_this_check_can_fail(module: str, imported: str):
    assert violations(module, {imported})
    assert not violations("rllib_vlm.cli", {imported})


def test_importing_the_package_loads_neither_torch_nor_ray():
    code = "import sys, rllib_vlm; assert not {'torch', 'ray', 'transformers', 'mujoco'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("floor_1_room", ["sims.base", "prompts.base", "credit.base", "registry"])
def test_the_lower_floors_load_without_ray(floor_1_room: str):
    code = f"import sys, rllib_vlm.{floor_1_room}; assert 'ray' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
