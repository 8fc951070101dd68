"""Maps the top-level folders `configs/` and `tuned_examples/` into the package, so that they are found
after an ordinary install as well as in a clone. Everything else is declared in setup.cfg."""

from setuptools import find_packages, setup

FOLDERS = {"rllib_vlm.configs": "configs", "rllib_vlm.tuned_examples": "tuned_examples"}

setup(
    packages=[*find_packages(include=["rllib_vlm", "rllib_vlm.*"]), *FOLDERS],
    package_dir=FOLDERS,
)
