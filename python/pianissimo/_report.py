"""What a compiled model costs, and how near it is to the float network."""

from __future__ import annotations

import html
import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import _native
from ._waiting import wait

if TYPE_CHECKING:
    import pandas

KINDS = ("relu", "identity", "square", "polynomial")


class Report:
    """A compiled model with its report: what :func:`pianissimo.compile` returns.

    Printed, it is the table of ``pi-compile``; in a notebook, a table of HTML. ``data`` has every
    figure, named as ``pi-compile --json`` names it.
    """

    def __init__(self, native: _native.Model) -> None:
        self._native = native
        said = json.loads(native.report_json())
        self.data: dict[str, Any] = said["report"]
        self.notices: list[str] = said["notices"]
        self.digest: str = said["digest"]
        self.input_shape: tuple[int, int, int] = tuple(said["input"])
        self.classes: list[str] = said["classes"]
        self.reveal: str = said["reveal"]
        self.has_weights: bool = said["has_weights"]
        self._comparison: dict[str, Any] | None = said["comparison"]

    @property
    def name(self) -> str:
        """Name of the network."""
        return str(self.data["name"])

    @property
    def relus(self) -> int:
        """Number of elements that are ReLUs, each of which costs a garbled circuit."""
        return int(self.data["kinds"]["relu"])

    @property
    def layers(self) -> list[dict[str, Any]]:
        """One dictionary for each private layer: ranges, bits, bytes and predicted times."""
        return list(self.data["layers"])

    @property
    def agreement(self) -> float | None:
        """Share of the held-back examples with the float network's answer.

        ``None`` of a model that was opened, not compiled: its files do not have it.
        """
        measured = self.data["measured"]
        if measured is None:
            return None
        compared = measured["comparison"]
        return float(compared["agree"] / max(compared["images"], 1))

    @property
    def accuracy(self) -> tuple[float, float] | None:
        """Accuracy of the float network and in fixed point, if labelled examples were evaluated."""
        found = self.data["accuracy"]
        if found is None:
            return None
        images = max(found["images"], 1)
        return found["float_correct"] / images, found["fixed_correct"] / images

    @property
    def bytes_offline(self) -> tuple[int, int]:
        """Bytes up and down of a bundle that is prepared alone. Exact."""
        return self._traffic("offline")

    @property
    def bytes_online(self) -> tuple[int, int]:
        """Bytes up and down of an answer. Exact."""
        return self._traffic("online")

    def _traffic(self, phase: str) -> tuple[int, int]:
        traffic = self.data[phase]
        return int(traffic["bytes_up"]), int(traffic["bytes_down"])

    @property
    def round_trips(self) -> int:
        """Round trips of an answer."""
        return int(self.data["round_trips"])

    def seconds(self, phase: str = "online", line: str | None = None) -> float:
        """Predicted seconds of an answer, or of a bundle with ``phase="offline"``.

        ``line`` is one of :attr:`lines`; the first without it.
        """
        predicted = self.data["predicted"]
        return float(predicted[line or self.lines[0]][f"{phase}_s"])

    @property
    def lines(self) -> list[str]:
        """The lines between client and server for which times are predicted."""
        return [profile["name"] for profile in self.data["profiles"]]

    def kinds(self) -> dict[str, npt.NDArray[np.uint8]]:
        """The kind of every element of every private activation, by layer, as ``[C, H, W]``.

        0 is a ReLU, 1 an identity, 2 a square, 3 a polynomial.
        """
        return {
            name: np.frombuffer(kinds, dtype=np.uint8).reshape(shape)
            for name, shape, kinds in self._native.kinds()
        }

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Writes ``model.pia`` (public) and ``model.piw`` (for the server alone) into a directory.

        The directory is made if it is not there.
        """
        self._native.save(os.fspath(directory))

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for each private layer, as a table of pandas."""
        import pandas

        return pandas.DataFrame([_flat(layer) for layer in self.layers])

    def to_html(self) -> str:
        """A page of its own with charts, as ``pi-compile --report`` writes it."""
        return self._native.page()

    def __str__(self) -> str:
        return self._native.table()

    def __repr__(self) -> str:
        return str(self).rstrip("\n")

    def _repr_html_(self) -> str:
        facts = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in self._facts()
        )
        columns = list(_flat(self.layers[0])) if self.layers else []
        head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
        rows = "".join(
            "<tr>"
            + "".join(f"<td>{html.escape(_shown(cell))}</td>" for cell in _flat(layer).values())
            + "</tr>"
            for layer in self.layers
        )
        return (
            f"<table>{facts}</table><details><summary>{len(self.layers)} private layers</summary>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></details>"
        )

    def _facts(self) -> list[tuple[str, str]]:
        """The figures that matter most, with their names."""
        kinds = self.data["kinds"]
        facts = [
            ("network", self.name),
            ("the client learns", self.reveal),
            ("elements", ", ".join(f"{kinds[kind]:,} {kind}" for kind in KINDS if kinds[kind])),
        ]
        if self.agreement is not None:
            compared = self.data["measured"]["comparison"]
            agree = f"{compared['agree']} of {compared['images']} held back"
            facts.append(("same answer as the float network", agree))
        if self.accuracy is not None:
            before, after = self.accuracy
            facts.append(("accuracy", f"float {before:.2%}, fixed point {after:.2%}"))
        for phase, what in [("offline", "offline, a bundle"), ("online", "online, an answer")]:
            up, down = self._traffic(phase)
            times = ", ".join(f"{self.seconds(phase, line):.3g} s {line}" for line in self.lines)
            facts.append((what, f"{_bytes(up)} up, {_bytes(down)} down; predicted {times}"))
        facts.append(("round trips of an answer", str(self.round_trips)))
        warnings = [notice for notice in self.notices if notice.startswith("warning")]
        facts.extend(("take care", warning.removeprefix("warning: ")) for warning in warnings)
        return facts


def inspect(
    directory: str | os.PathLike[str], *, link: float = 100.0, machine: str = "here"
) -> Report:
    """The report on a model directory, for a link of so many Mbit/s and a machine.

    It needs ``model.pia`` alone; with ``model.piw`` beside it, the model can be simulated too.

    >>> report = inspect(bundled, machine="zen4-avx512")
    >>> report.relus, report.reveal, report.round_trips
    (5980, 'label', 7)
    """
    job = _native.open_model(os.fspath(directory), float(link), machine)
    return Report(wait(job))


def _flat(layer: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {name: layer[name] for name in ("name", "shape", "terms")}
    row.update((kind, layer["kinds"][kind]) for kind in KINDS)
    for name in ("weight_bits", "bound_bits", "range", "head_room", "multiply_adds"):
        row[name] = layer[name]
    for phase in ("offline", "online"):
        row[f"{phase}_up"] = layer[phase]["bytes_up"]
        row[f"{phase}_down"] = layer[phase]["bytes_down"]
    row["round_trips"] = layer["round_trips"]
    return row


def _shown(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def _bytes(count: int) -> str:
    if count < 1_000_000:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e6:.2f} MB"
