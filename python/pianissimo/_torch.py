"""Modules of PyTorch as ONNX models. Imported only where one is given."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import CompileError


def export(module: Any, shape: Sequence[int], path: Path) -> str:
    """Writes a module, in evaluation mode and on the CPU's numbers, for an input of this shape.

    The module is left as it was.
    """
    import torch

    was_training = module.training
    parameter = next(module.parameters(), None)
    device = "cpu" if parameter is None else parameter.device
    dtype = torch.float32 if parameter is None else parameter.dtype
    example = torch.zeros((1, *(int(side) for side in shape)), dtype=dtype, device=device)
    said = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said):
            warnings.simplefilter("ignore")
            # The exporter by tracing needs no other package; the other needs onnxscript.
            torch.onnx.export(
                module.eval(), (example,), str(path), dynamo=False, input_names=["input"],
                output_names=["output"],
            )
    except Exception as error:
        raise CompileError(
            f"torch.onnx cannot export the module: {error}",
            remedy="export it yourself, and give the path of the ONNX model",
        ) from error
    finally:
        module.train(was_training)
    return str(path)
