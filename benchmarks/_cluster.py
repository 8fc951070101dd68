"""Ray for a benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import ray


@contextmanager
def local_ray(num_cpus: int = 2) -> Iterator[None]:
    """A Ray on this machine that ends with the block; where one runs already, that one, which goes on."""
    if ray.is_initialized():
        yield
        return
    ray.init("local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()
