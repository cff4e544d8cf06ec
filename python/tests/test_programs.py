"""The package and the programs share one state, one model format and one protocol."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

import pianissimo


def program(name: str) -> Path:
    """A program as `cargo build` left it."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    found = [target / profile / name for profile in ("debug", "release")]
    found = [path for path in found if path.exists()]
    if not found:
        pytest.skip(f"{name} is not built: cargo build -p pi-runtime --bin {name}")
    return max(found, key=lambda path: path.stat().st_mtime)


def test_pi_client_spends_what_was_prepared_here_and_the_other_way_round(
    server: pianissimo.Server, rows: np.ndarray, tmp_path: Path
) -> None:
    pi_client, state, row = program("pi-client"), tmp_path / "state", tmp_path / "row.npy"
    np.save(row, rows[0])
    to = ["--state", str(state), "--server", server.address, "--model", "logits", "--unbound"]

    def run(*arguments: str) -> str:
        command = [str(pi_client), *arguments, *to]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def client() -> pianissimo.Client:
        return pianissimo.Client(server.address, server.fingerprint, model="logits", state=state)

    with client() as first:
        first.prepare(2)
        ours = first.infer(rows[0])
    theirs = json.loads(run("infer", str(row), "--json"))
    # Each run rounds with shares of its own.
    assert ours.label == theirs["class_index"]
    integers = ours.integer_logits
    assert np.abs(integers - theirs["logits"]).max() < 0.05 * np.abs(integers).max()
    run("prepare", "-n", "1")
    with client() as second:
        assert second.describe().ready == 1
        assert second.infer(row).label == ours.label
