"""Answers, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import OutOfRange

OUT_OF_RANGE = (
    "out of the network's range: a value inside the network left the bounds that its maker "
    "calibrated, so an answer would mean nothing; the bundle is spent"
)
OUT_OF_RANGE_REMEDY = (
    "ask about another input, or have the model compiled with data like this one, or with more "
    "--head-room"
)


@dataclass(frozen=True)
class Cost:
    """Time on the clock, and bytes and messages as the client counts them."""

    seconds: float
    bytes_up: int
    bytes_down: int
    messages: int


@dataclass(frozen=True)
class Answer:
    """The answer to one input, which has spent one bundle.

    An input that is out of the network's range has none: :attr:`label`, :attr:`name` and
    :attr:`logits` then raise :class:`~pianissimo.errors.OutOfRange`, and :attr:`in_range` is false.
    """

    in_range: bool
    cost: Cost
    #: What was done to get the input, such as resizing; one sentence each.
    notices: list[str]
    #: Identity of the bundle spent.
    bundle: str
    #: Whether the exact interpreter has the same answer; ``None`` if it was not asked.
    equal: bool | None
    _label: int | None = field(repr=False)
    _logits: list[int] | None = field(repr=False)
    _frac_bits: int = field(repr=False)
    _classes: Sequence[str] = field(repr=False)

    @property
    def label(self) -> int:
        """The class: index of the largest logit, the first of several equal ones."""
        if self._label is None:
            raise OutOfRange(OUT_OF_RANGE, remedy=OUT_OF_RANGE_REMEDY)
        return self._label

    @property
    def name(self) -> str:
        """Name of the class, or its number if it has no name."""
        if self.label < len(self._classes):
            return self._classes[self.label]
        return f"class {self.label}"

    @property
    def logits(self) -> npt.NDArray[np.float64] | None:
        """All logits, exactly, if the model reveals them."""
        integers = self.integer_logits
        return None if integers is None else np.ldexp(integers.astype(np.float64), -self._frac_bits)

    @property
    def integer_logits(self) -> npt.NDArray[np.int64] | None:
        """The logits as integers of ``2**-frac_bits``, which is how they are computed."""
        # An answer that is none raises first.
        _ = self.label
        return None if self._logits is None else np.array(self._logits, dtype=np.int64)

    def __repr__(self) -> str:
        if not self.in_range:
            return "Answer(out of the network's range)"
        time = f"{1e3 * self.cost.seconds:.1f} ms"
        return f"Answer({self.name!r}, label={self.label}, {time})"


def answer_of(said: dict[str, Any], model: dict[str, Any]) -> Answer:
    """An answer from what the native half says of it and of the model."""
    return Answer(
        in_range=said["in_range"],
        cost=Cost(**said["online"]),
        notices=said["notices"],
        bundle=said["bundle"],
        equal=said.get("equal"),
        _label=said["label"],
        _logits=said["logits"],
        _frac_bits=model["output_frac_bits"],
        _classes=model["classes"],
    )
