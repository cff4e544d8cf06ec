"""From a trained network to a model."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

import numpy.typing as npt

from . import _native
from ._inputs import npy, to_array
from ._report import Report
from ._waiting import wait
from .errors import InvalidArgument, in_python

if TYPE_CHECKING:
    import torch

    Network = Union[str, os.PathLike[str], torch.nn.Module]

Data = Union[str, "os.PathLike[str]", npt.ArrayLike]


def compile(
    model: Network,
    calibration: Data,
    *,
    evaluate: Data | None = None,
    labels: npt.ArrayLike | str | os.PathLike[str] | None = None,
    label_column: str | int | None = None,
    input: Sequence[int] | None = None,
    input_kind: Literal["image", "values"] | None = None,
    input_bound: float | None = None,
    output: str | None = None,
    mean: float | Sequence[float] | None = None,
    deviation: float | Sequence[float] | None = None,
    white: float | None = None,
    channel_order: Literal["rgb", "bgr"] = "rgb",
    masks: str | os.PathLike[str] | None = None,
    reveal: Literal["label", "logits"] = "label",
    outputs: Literal["classes", "values"] | None = None,
    max_error: float | None = None,
    allow_disagreement: bool = False,
    calibration_images: int | None = None,
    evaluate_images: int | None = None,
    weight_bits: int | None = None,
    activation_bits: int | None = None,
    head_room: int | None = None,
    proved_sign_bits: int | None = None,
    pools: Literal["cheapest", "absorb", "separate"] | None = None,
    public_prefix: str | None = None,
    reveal_learned_weights: bool = False,
    batches: Sequence[int] = (4, 16),
    range_check: bool = True,
    link: float = 100.0,
    machine: str = "here",
    note: str = "",
) -> Report:
    """Compiles a trained network to a model that a server can serve privately.

    The options have the names and the meaning of those of ``pi-compile``, whose ``--help`` and
    ``docs/onnx.md`` say more about each.

    Args:
        model: path of an ONNX model or of a graph file, or a ``torch.nn.Module``, which is
            exported through ``torch.onnx`` in evaluation mode.
        calibration: examples like those that the network will see: an array ``[N, ...]`` (bytes
            for a network of pictures, channels first), or the path of a folder, an archive, a
            ``.npy`` or a ``.csv`` file. The word ``"synthetic"`` stands for drawn ones, which are
            good enough for costs alone. A fifth is held back, and the result measured on it.
        evaluate, labels: labelled examples, on which float and fixed-point accuracy are compared.
        input: shape of one input without the batch, where the model leaves it open.
        mean, deviation: those of the pixels (from 0 to 1) or values that the network was trained
            with, if it does not normalise its input itself.
        reveal: what clients learn: the label, or all logits, which tell much more about the
            weights with each answer.
        link, machine: Mbit/s and machine of the server, for which the packing is chosen and times
            are predicted.

    Returns:
        A report, with the model: ``report.save(directory)`` writes its two files.

    Raises:
        CompileError: the network has no private form, or the data do not fit it; the text names
            every node.
        Unfaithful: fixed point gives other answers than the float network.

    >>> report = compile(blobs_onnx, rows, machine="zen4-avx512")
    >>> report.agreement >= 0.95, report.reveal, report.relus
    (True, 'label', 32)
    """
    choices: dict[str, Any] = {
        "label_column": None if label_column is None else str(label_column),
        "input": None if input is None else [int(side) for side in input],
        "input_kind": input_kind,
        "input_bound": input_bound,
        "output": output,
        "mean": _list(mean),
        "deviation": _list(deviation),
        "white": white,
        "channel_order": channel_order,
        "masks": None if masks is None else os.fspath(masks),
        "reveal": reveal,
        "outputs": outputs,
        "max_error": max_error,
        "allow_disagreement": allow_disagreement,
        "calibration_images": calibration_images,
        "evaluate_images": evaluate_images,
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "head_room": head_room,
        "proved_sign_bits": proved_sign_bits,
        "pools": pools,
        "public_prefix": public_prefix,
        "reveal_learned_weights": reveal_learned_weights,
        "batches": list(batches),
        "range_check": range_check,
        "link": float(link),
        "machine": machine,
        "note": note,
    }
    with tempfile.TemporaryDirectory(prefix="pianissimo-") as name:
        directory = Path(name)
        network = _network(model, calibration, input, directory)
        choices["calibration"] = _file(calibration, directory / "calibration.npy")
        if evaluate is not None:
            choices["evaluate"] = _file(evaluate, directory / "evaluate.npy")
        if labels is not None:
            choices["labels"] = _file(labels, directory / "labels.npy")
        given = {key: value for key, value in choices.items() if value is not None}
        report = Report(wait(_native.compile(network, json.dumps(given))))
    for notice in report.notices:
        if notice.startswith("warning: "):
            warnings.warn(in_python(notice.removeprefix("warning: ")), stacklevel=2)
    return report


def _list(numbers: float | Sequence[float] | None) -> list[float] | None:
    if numbers is None:
        return None
    return [float(number) for number in to_array(numbers).reshape(-1)]


def _file(data: Any, path: Path) -> str:
    """The path of data, which are written if they are an array."""
    if isinstance(data, (str, os.PathLike)):
        return os.fspath(data)
    path.write_bytes(npy(data))
    return str(path)


def _network(
    model: Any, calibration: Any, shape: Sequence[int] | None, directory: Path
) -> str:
    """The path of a network, which is exported if it is a module of PyTorch."""
    if isinstance(model, (str, os.PathLike)):
        return os.fspath(model)
    if not (hasattr(model, "state_dict") and hasattr(model, "forward")):
        raise InvalidArgument(
            f"a model is a path or a torch.nn.Module, not a {type(model).__name__}",
            remedy="export it as ONNX and give the path",
        )
    from ._torch import export

    if shape is None:
        if isinstance(calibration, (str, os.PathLike)):
            raise InvalidArgument(
                "a module does not say what shape its input has, and neither does calibration data "
                "in files",
                remedy="give --input, such as input=(3, 32, 32)",
            )
        shape = to_array(calibration).shape[1:]
    return export(model, shape, directory / f"{type(model).__name__}.onnx")
