"""What a model is asked about: arrays, files and pictures."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import numpy.typing as npt

from . import _native
from .errors import InputError

if TYPE_CHECKING:
    import PIL.Image

    One = Union[npt.ArrayLike, os.PathLike[str], str, PIL.Image.Image]
    Inputs = Union[One, Sequence[One]]


def npy(array: npt.ArrayLike) -> bytes:
    """An array as ``numpy.save`` writes it, its elements little-endian and in rows.

    >>> npy(np.zeros((2, 3), dtype=">f4"))[-24:] == bytes(24)
    True
    """
    found = to_array(array)
    if found.dtype.kind not in "biuf" or found.dtype.itemsize > 8:
        raise InputError(
            f"an array of numbers is needed, and this one's elements are {found.dtype}",
            remedy="convert it, for example with .astype(numpy.float32)",
        )
    if found.dtype == np.float16:
        found = found.astype(np.float32)
    found = np.ascontiguousarray(found, dtype=found.dtype.newbyteorder("<"))
    file = io.BytesIO()
    np.save(file, found, allow_pickle=False)
    return file.getvalue()


def to_array(array: Any) -> npt.NDArray[Any]:
    """The array in an object that may be a tensor of PyTorch, a table of pandas or a list."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
    return np.asarray(array)


def is_picture(value: object) -> bool:
    """Whether this is an image of Pillow, which need not be installed to find out."""
    return hasattr(value, "getbands") and hasattr(value, "tobytes")


def picture(image: Any) -> _native.Input:
    """An image of Pillow, turned upright as a file would be."""
    # Asked of the image, so that Pillow is not needed here.
    orientation = image.getexif().get(0x0112, 1) if hasattr(image, "getexif") else 1
    if orientation != 1:
        from PIL import ImageOps

        image = ImageOps.exif_transpose(image)
    if "transparency" in image.info or image.mode in ("RGBa", "PA", "La"):
        image = image.convert("RGBA")
    elif image.mode in ("1", "I;16", "I", "F"):
        # Wide pixels are scaled, not cut off as Pillow would.
        image = _grey(image)
    elif image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("RGB")
    return _native.Input.picture(image.width, image.height, image.tobytes())


def _grey(image: Any) -> Any:
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("I", "F"):
        raise InputError(
            f"a picture with pixels of the mode {image.mode!r} says nothing of what is white",
            remedy="convert it to the mode L first, or give an array of bytes",
        )
    from PIL import Image

    wide = np.asarray(image, dtype=np.uint32)
    return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))


def one(value: Any) -> _native.Input:
    """One object as an input; an array may hold several examples."""
    if isinstance(value, (str, os.PathLike)):
        return _native.Input.file(os.fspath(value))
    if is_picture(value):
        return picture(value)
    return _native.Input.array(npy(value))


def inputs(values: Any) -> tuple[list[_native.Input], int | None]:
    """The inputs in an object, and the number of its axes if it is one object, not a list."""
    if isinstance(values, (str, os.PathLike)) or is_picture(values):
        return [one(values)], 0
    if isinstance(values, (list, tuple)) and any(map(_stands_alone, values)):
        return [one(value) for value in values], None
    array = to_array(values)
    return [_native.Input.array(npy(array))], array.ndim


def _stands_alone(value: object) -> bool:
    """Whether an element of a list is an input by itself, not a row of numbers."""
    arrays = (np.ndarray,)
    is_array = isinstance(value, arrays) or hasattr(value, "detach")
    return isinstance(value, (str, os.PathLike)) or is_picture(value) or is_array


def is_batch(axes: int | None, shape: Sequence[int], count: int) -> bool:
    """Whether an object with so many axes, which had ``count`` examples, stands for a batch.

    >>> is_batch(4, (3, 32, 32), 1), is_batch(3, (3, 32, 32), 1), is_batch(2, (4, 1, 1), 1)
    (True, False, True)
    """
    if axes is None or count != 1:
        return True
    own = len(shape)
    while own > 1 and shape[own - 1] == 1:
        own -= 1
    if len(shape) == 3 and shape[1] == 1 and shape[2] > 1:
        own = 2
    return axes > own
