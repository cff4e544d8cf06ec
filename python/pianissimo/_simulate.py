"""Both parties in one process: what a paper's table needs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _inputs, _native
from ._answers import Cost
from ._report import Report, inspect
from ._waiting import Progress, wait
from .errors import ModelError


@dataclass(frozen=True)
class Results:
    """What one way of computing says of all inputs; masked where it says "out of range"."""

    labels: np.ma.MaskedArray[Any, np.dtype[np.int64]]
    #: ``[N, K]``, exact; ``None`` where the logits stay secret.
    logits: np.ma.MaskedArray[Any, np.dtype[np.float64]] | None

    @property
    def in_range(self) -> npt.NDArray[np.bool_]:
        """Which inputs have an answer."""
        return ~np.ma.getmaskarray(self.labels)


@dataclass(frozen=True)
class Simulation:
    """The three ways to compute the answers to some inputs, and what the private one cost."""

    #: Fixed point, rounding to nearest: for accuracy.
    plain: Results
    #: Fixed point with the client's shares of the private run, which it must equal.
    exact: Results
    #: The two-party computation.
    private: Results
    #: Whether each private answer equals the exact interpreter's, bit for bit.
    equal: npt.NDArray[np.bool_]
    #: Keys, once for each client and server. Times are of both parties together.
    setup: Cost
    #: All bundles.
    offline: Cost
    #: Each answer.
    online: list[Cost]
    classes: list[str]


def simulate(
    model: str | os.PathLike[str] | Report,
    inputs: _inputs.Inputs,
    *,
    progress: Progress | None = None,
) -> Simulation:
    """Computes the answers to some inputs in three ways, the private one over memory.

    Nothing is kept, and no network is used; all bytes are those of real messages.

    Args:
        model: a model directory with its weights, or a report.
        inputs: as for :meth:`pianissimo.Client.infer`.
        progress: called with the number of inputs that are done.

    >>> result = simulate(bundled, np.zeros((3, 32, 32), dtype=np.uint8))
    >>> bool(result.equal.all()), result.online[0].bytes_up
    (True, 652512)
    """
    if isinstance(model, Report):
        report = model
    else:
        # Costs are not asked for, so that nothing is measured.
        report = inspect(model, machine="zen4-avx512")
    if not report.has_weights:
        raise ModelError(
            f"the weights of {report.name} are not there",
            remedy="a simulation plays the server too: give the directory that has model.piw",
        )
    sent, _ = _inputs.inputs(inputs)
    said = json.loads(wait(_native.simulate(report._native, sent), progress))
    examples, frac_bits = said["examples"], said["output_frac_bits"]

    def results(way: str) -> Results:
        return _results([example[way] for example in examples], frac_bits)

    return Simulation(
        plain=results("plain"),
        exact=results("exact"),
        private=results("private"),
        equal=np.array([example["equal"] for example in examples], dtype=np.bool_),
        setup=Cost(**said["setup"]),
        offline=Cost(**said["offline"]),
        online=[Cost(**example["online"]) for example in examples],
        classes=said["classes"],
    )


def _results(answers: Sequence[dict[str, Any]], frac_bits: int) -> Results:
    mask = np.array([not answer["in_range"] for answer in answers], dtype=np.bool_)
    labels = [answer["label"] if answer["in_range"] else 0 for answer in answers]
    known = [answer["logits"] for answer in answers if answer.get("logits") is not None]
    logits: np.ma.MaskedArray[Any, np.dtype[np.float64]] | None = None
    if known:
        rows = [answer.get("logits") or [0] * len(known[0]) for answer in answers]
        values = np.ldexp(np.array(rows, dtype=np.int64).astype(np.float64), -frac_bits)
        logits = np.ma.MaskedArray(values, mask=np.repeat(mask[:, None], values.shape[1], axis=1))
    return Results(np.ma.MaskedArray(np.array(labels, dtype=np.int64), mask=mask), logits)
