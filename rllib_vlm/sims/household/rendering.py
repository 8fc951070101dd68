"""Off-screen pictures: which OpenGL backend to use, and one context per thread and picture size.

Household models hold no meshes and no textures, so one MuJoCo rendering context draws any of them.
"""

from __future__ import annotations

import ctypes
import os
import threading
from typing import Any

import numpy as np

from rllib_vlm.errors import SimulatorError
from rllib_vlm.types import Image

_INSTALL = "apt-get install -y libegl1 libegl-mesa0 libgl1-mesa-dri  (or: libosmesa6)"
_MAX_GEOMS = 2000


def choose_backend() -> str:
    """The OpenGL backend: what the user set in MUJOCO_GL, or else EGL, or else OSMesa.

    Raises:
        SimulatorError: neither is installed.
    """
    wish = os.environ.get("MUJOCO_GL", "").strip().lower()
    if wish:
        return wish
    # PyOpenGL settles on a platform when it is first imported, so this one must not be tried but asked for.
    platform = os.environ.get("PYOPENGL_PLATFORM", "").strip().lower()
    if platform != "osmesa" and _egl_devices() > 0:
        return "egl"
    if platform != "egl" and _loads("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"):
        return "osmesa"
    raise SimulatorError(
        f"no off-screen OpenGL: neither an EGL device nor OSMesa was found on this machine. Run: {_INSTALL}"
    )


def _egl_devices() -> int:
    """How many devices EGL can render on; 0 where EGL or its driver is missing."""
    try:
        egl = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return 0
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    if not address:
        return 0
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))(
        address
    )
    count = ctypes.c_int(0)
    return count.value if query(0, None, ctypes.byref(count)) else 0


def _loads(*names: str) -> bool:
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


def _gl_context(backend: str, width: int, height: int) -> Any:
    """A context of this backend, current in this thread."""
    os.environ.setdefault("MUJOCO_GL", backend)
    os.environ.setdefault("LP_NUM_THREADS", "1")  # llvmpipe: small pictures gain nothing from threads
    if backend == "egl":
        from mujoco.egl import GLContext
    elif backend == "osmesa":
        from mujoco.osmesa import GLContext
    else:
        from mujoco import GLContext
    context = GLContext(width, height)
    context.make_current()
    return context


class Canvas:
    """Draws MuJoCo models off-screen at one size: flat colours, no shadows, no anti-aliasing."""

    def __init__(self, width: int, height: int) -> None:
        backend = choose_backend()
        self.width, self.height = width, height
        try:
            import mujoco

            self._gl = _gl_context(backend, width, height)
            model = mujoco.MjModel.from_xml_string(
                f'<mujoco><visual><global offwidth="{width}" offheight="{height}"/>'
                '<quality shadowsize="0" offsamples="0" numslices="16" numstacks="8" numquads="1"/></visual>'
                '<worldbody><geom size="1"/></worldbody></mujoco>'
            )
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        except Exception as error:  # every backend fails in its own way
            raise SimulatorError(
                f"OpenGL backend {backend!r} (environment variable MUJOCO_GL) does not start: "
                f"{type(error).__name__}: {error}. Run: {_INSTALL}; or unset MUJOCO_GL."
            ) from error
        self._mj = mujoco
        self._scene = mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)
        flags = self._scene.flags
        for flag in ("SHADOW", "REFLECTION", "SKYBOX", "FOG", "HAZE"):
            flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._viewport = mujoco.MjrRect(0, 0, width, height)
        self._buffer = np.empty((height, width, 3), np.uint8)

    def draw(self, model: Any, data: Any, cameras: list[int]) -> list[Image]:
        """One [height, width, 3] picture per camera id."""
        mj = self._mj
        self._gl.make_current()
        pictures: list[Image] = []
        for camera in cameras:
            self._camera.fixedcamid = camera
            if not pictures:
                mj.mjv_updateScene(
                    model, data, self._option, None, self._camera, mj.mjtCatBit.mjCAT_ALL, self._scene
                )
            else:
                mj.mjv_updateCamera(model, data, self._camera, self._scene)
            mj.mjr_render(self._viewport, self._scene, self._context)
            mj.mjr_readPixels(self._buffer, None, self._viewport, self._context)
            pictures.append(self._buffer[::-1].copy())
        return pictures


_local = threading.local()


def canvas(width: int, height: int) -> Canvas:
    """This thread's canvas of this size; OpenGL contexts belong to one thread of one process."""
    key = (os.getpid(), width, height)
    canvases = _local.__dict__.setdefault("canvases", {})
    if key not in canvases:
        canvases[key] = Canvas(width, height)
    return canvases[key]
