"""What setup.cfg, in which everything else is declared, has no words for.

The top-level folders `configs/` and `tuned_examples/` are mapped into the package, so that they are found after an
ordinary install as well as in a clone. And attention on CPUs is compiled; where that fails, as without a compiler,
torch's is used.
"""

from pathlib import Path

from setuptools import Extension, find_packages, setup

HERE = Path(__file__).parent
FOLDERS = {f"rllib_vlm.{name}": name for name in ("configs", "tuned_examples") if (HERE / name).is_dir()}

setup(
    packages=[*find_packages(include=["rllib_vlm", "rllib_vlm.*"]), *FOLDERS],
    package_dir=FOLDERS,
    ext_modules=[
        Extension(
            "rllib_vlm.models._cached_attention",
            ["rllib_vlm/models/cached_attention.cpp"],
            language="c++",
            extra_compile_args=["-std=c++17", "-O3", "-ffp-contract=fast", "-fno-exceptions", "-Wno-psabi"],
            optional=True,
        )
    ],
)
