"""Both parties in memory beside the interpreters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import pianissimo
from pianissimo.errors import InputError, ModelError


def test_three_ways_agree_on_a_trained_network(
    blobs_logits: pianissimo.Report, blobs_layers: list[np.ndarray], rows: np.ndarray
) -> None:
    done: list[int] = []
    result = pianissimo.simulate(blobs_logits, rows[:5], progress=done.append)
    assert result.equal.all() and result.private.logits is not None
    assert result.plain.logits is not None and result.exact.logits is not None
    assert (result.private.logits == result.exact.logits).all()
    # Rounding up and rounding to nearest differ, by little.
    apart = np.abs(result.plain.logits - result.exact.logits)
    assert 0 < apart.max() < 0.05 * np.abs(result.plain.logits).max()
    w1, b1, w2, b2 = blobs_layers
    float_labels = (np.maximum(rows[:5] @ w1 + b1, 0) @ w2 + b2).argmax(1)
    assert (result.private.labels == float_labels).all()


def test_bytes_are_those_that_the_report_predicts(
    blobs: pianissimo.Report, rows: np.ndarray
) -> None:
    result = pianissimo.simulate(blobs, rows[0])
    online = result.online[0]
    assert (online.bytes_up, online.bytes_down) == blobs.bytes_online
    assert (result.offline.bytes_up, result.offline.bytes_down) == blobs.bytes_offline
    assert result.private.logits is None and result.exact.logits is not None


def test_out_of_range_is_masked_and_never_an_answer(bundled: Path, ship: np.ndarray) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 32, 32)).astype(np.uint8)
    result = pianissimo.simulate(bundled, np.stack([ship, noise]))
    assert list(result.private.in_range) == [True, False] and result.equal.all()
    assert result.private.labels[1] is np.ma.masked
    assert result.classes[result.private.labels[0]] == "ship"


def test_a_simulation_needs_the_weights(
    blobs: pianissimo.Report, rows: np.ndarray, tmp_path: Path
) -> None:
    blobs.save(tmp_path)
    (tmp_path / "model.piw").unlink()
    with pytest.raises(ModelError, match="model.piw"):
        pianissimo.simulate(tmp_path, rows[0])
    with pytest.raises(InputError):
        pianissimo.simulate(blobs, rows[0][:3])
