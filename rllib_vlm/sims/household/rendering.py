"""Off-screen pictures of any number of MuJoCo models through one OpenGL context."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import mujoco
import numpy as np

from rllib_vlm.errors import SimulatorError
from rllib_vlm.types import Image

_PLATFORMS = {"egl": "mujoco.egl", "osmesa": "mujoco.osmesa", "glfw": "mujoco.glfw"}
_MAX_GEOMS = 1500


def open_gl_context(width: int, height: int) -> Any:
    """An OpenGL context that needs no screen: EGL, or else OSMesa; `MUJOCO_GL` decides if it is set.

    Raises:
        SimulatorError: neither library works here; says how to install them.
    """
    asked = os.environ.get("MUJOCO_GL", "").lower()
    reasons = []
    for name in [asked] if asked in _PLATFORMS else ["egl", "osmesa"]:
        try:
            context = import_module(_PLATFORMS[name]).GLContext(width, height)
            context.make_current()
            return context
        except (ImportError, RuntimeError, OSError, AttributeError) as error:  # what the loaders raise
            reasons.append(f"{name}: {error}")
            os.environ.pop("PYOPENGL_PLATFORM", None)
    raise SimulatorError(
        f"no off-screen OpenGL ({'; '.join(reasons)}). Install it: "
        "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri libosmesa6"
    )


class OffscreenRenderer:
    """Renders fixed cameras. Scenes of primitives only share one rendering context across models.

    Args:
        size: (width, height) of the pictures, pixels; at most 1024 x 768.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.width, self.height = size
        self._gl = open_gl_context(self.width, self.height)
        self._context: mujoco.MjrContext | None = None
        self._model: mujoco.MjModel | None = None
        self._options = mujoco.MjvOption()
        self._options.geomgroup[:] = (1, 1, 1, 1, 0, 0)
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._perturb = mujoco.MjvPerturb()
        self._rect = mujoco.MjrRect(0, 0, self.width, self.height)

    def __call__(self, model: mujoco.MjModel, data: mujoco.MjData, camera: int) -> Image:
        """[H, W, 3] RGB of a fixed camera."""
        self._gl.make_current()
        if model is not self._model:
            self._model = model
            self._scene = mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)
        if self._context is None:
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._camera.fixedcamid = camera
        mujoco.mjv_updateScene(
            model, data, self._options, self._perturb, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        # Shadows and reflections take nine tenths of the time and tell a small model nothing.
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        mujoco.mjr_render(self._rect, self._scene, self._context)
        picture = np.empty((self.height, self.width, 3), np.uint8)
        mujoco.mjr_readPixels(picture, None, self._rect, self._context)
        return picture[::-1].copy()  # OpenGL's first row is the bottom one

    def close(self) -> None:
        """Frees the OpenGL context; the renderer cannot be used any more. May be called again."""
        if self._context is not None:
            self._gl.make_current()
            self._context.free()
            self._context = None
        if self._gl is not None:
            self._gl.free()
            self._gl = None
