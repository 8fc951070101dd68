"""Maps the top-level folders `configs/` and `tuned_examples/` into the package, so that they are found
after an ordinary install as well as in a clone. Everything else is declared in setup.cfg.
"""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
FOLDERS = {f"rllib_vlm.{name}": name for name in ("configs", "tuned_examples") if (HERE / name).is_dir()}

setup(
    packages=[*find_packages(include=["rllib_vlm", "rllib_vlm.*"]), *FOLDERS],
    package_dir=FOLDERS,
)
