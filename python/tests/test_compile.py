"""Compiling: reports, refusals, and what comes of PyTorch's modules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import MACHINE, write_onnx

import pianissimo
from pianissimo.errors import CompileError, InvalidArgument, ModelError, Unfaithful


def test_a_report_has_costs_ranges_and_agreement(blobs: pianissimo.Report) -> None:
    assert blobs.relus == 32 and blobs.input_shape == (16, 1, 1)
    assert blobs.agreement is not None and blobs.agreement >= 0.95
    assert blobs.layers[0]["range"] in ("proved", "calibrated")
    assert min(*blobs.bytes_offline, *blobs.bytes_online) > 0
    assert blobs.seconds("offline") > blobs.seconds("online") > 0
    assert any(notice.startswith("range: ") for notice in blobs.notices)


def test_a_report_prints_as_the_table_of_the_program(blobs: pianissimo.Report) -> None:
    assert str(blobs).startswith("blobs\n") and "relu" in repr(blobs)
    page = blobs._repr_html_()
    assert page.startswith("<table>") and "same answer as the float network" in page
    assert blobs.to_html().startswith("<!DOCTYPE html>")


def test_names_from_a_model_are_text_in_html(blobs: pianissimo.Report) -> None:
    report = pianissimo.Report(blobs._native)
    report.data = {**report.data, "name": "<script>alert(1)</script>"}
    assert "<script>" not in report._repr_html_()


def test_a_report_becomes_a_table_of_pandas(blobs: pianissimo.Report) -> None:
    pytest.importorskip("pandas", reason="pip install pandas")
    table = blobs.to_dataframe()
    assert list(table["relu"]) == [32, 0] and table["online_down"].sum() > 0


def test_a_saved_model_is_the_one_that_was_compiled(
    blobs: pianissimo.Report, tmp_path: Path
) -> None:
    blobs.save(tmp_path / "model")
    read = pianissimo.inspect(tmp_path / "model", machine=MACHINE)
    assert read.digest == blobs.digest and read.has_weights and read.agreement is None
    (tmp_path / "model" / "model.piw").unlink()
    assert not pianissimo.inspect(tmp_path / "model", machine=MACHINE).has_weights
    with pytest.raises(ModelError, match="the server's side"):
        pianissimo.inspect(tmp_path / "model", machine=MACHINE).save(tmp_path / "other")


def test_accuracy_is_that_of_the_labelled_examples(
    blobs_onnx: Path,
    blobs_layers: list[np.ndarray],
    rows: np.ndarray,
    labelled: tuple[np.ndarray, np.ndarray],
) -> None:
    inputs, labels = labelled
    report = pianissimo.compile(
        blobs_onnx, rows, evaluate=inputs, labels=labels, machine=MACHINE, batches=()
    )
    w1, b1, w2, b2 = blobs_layers
    right = (np.maximum(inputs @ w1 + b1, 0) @ w2 + b2).argmax(1) == labels
    assert report.accuracy is not None
    assert report.accuracy[0] == pytest.approx(right.mean())


def test_all_that_pi_compile_assumes_is_in_the_notices(rows: np.ndarray, blobs_onnx: Path) -> None:
    with pytest.warns(UserWarning, match="drawn examples"):
        report = pianissimo.compile(blobs_onnx, "synthetic", machine=MACHINE, batches=())
    assert any("drawn examples" in notice for notice in report.notices)
    assert "take care" in report._repr_html_()


def test_a_network_without_a_private_form_names_its_node(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="pip install onnx")
    make, float32 = onnx.helper, onnx.TensorProto.FLOAT
    graph = make.make_graph(
        [make.make_node("LRN", ["x"], ["y"], name="norm", size=3)],
        "net",
        [make.make_tensor_value_info("x", float32, [None, 3, 8, 8])],
        [make.make_tensor_value_info("y", float32, [None, 3, 8, 8])],
    )
    path = tmp_path / "net.onnx"
    opset = [make.make_opsetid("", 17)]
    onnx.save(make.make_model(graph, opset_imports=opset, ir_version=8), path)
    with pytest.raises(CompileError, match=r"norm \(LRN\)"):
        pianissimo.compile(path, "synthetic", machine=MACHINE)


def test_an_unfaithful_network_is_refused_and_made_only_on_demand(
    blobs_layers: list[np.ndarray], rows: np.ndarray, tmp_path: Path
) -> None:
    w1, b1, w2, b2 = blobs_layers
    # One logit a million times the others leaves these no bits.
    spoiled = [w1, b1, w2 * np.array([1e6, 1, 1], dtype=np.float32), b2]
    spoiled[2][:, 0] -= spoiled[2][:, 0].mean()
    path = write_onnx(spoiled, tmp_path / "spoiled.onnx")
    options = {"machine": MACHINE, "batches": (), "weight_bits": 2, "activation_bits": 4}
    with pytest.raises(Unfaithful) as refused:
        pianissimo.compile(path, rows, **options)
    assert "allow_disagreement" in str(refused.value)
    assert refused.value.detail is not None and "snr" in refused.value.detail
    with pytest.warns(UserWarning, match="allow_disagreement"):
        report = pianissimo.compile(path, rows, allow_disagreement=True, **options)
    assert "Not faithful" in report.data["note"]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"weight_bits": 40}, "weight bits"),
        ({"reveal": "all"}, "reveal|variant"),
        ({"link": -1.0}, "link"),
        ({"machine": "abacus"}, "abacus"),
        ({"input": (16, 0)}, "side"),
        ({"labels": [1]}, "evaluate"),
        ({"mean": [1.0, 2.0]}, "mean"),
    ],
)
def test_options_that_mean_nothing_are_named(
    blobs_onnx: Path, rows: np.ndarray, options: dict, what: str
) -> None:
    with pytest.raises((InvalidArgument, CompileError), match=what):
        pianissimo.compile(blobs_onnx, rows, **{"machine": MACHINE, **options})


def test_what_is_no_network_is_refused(blobs_onnx: Path, rows: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "torn.onnx").write_bytes(blobs_onnx.read_bytes()[:100])
    for path in (tmp_path / "torn.onnx", tmp_path / "absent.onnx"):
        with pytest.raises(CompileError, match=path.name):
            pianissimo.compile(path, rows, machine=MACHINE)
    with pytest.raises(InvalidArgument, match="int"):
        pianissimo.compile(7, rows, machine=MACHINE)  # type: ignore[arg-type]
    with pytest.raises(CompileError, match="shape"):
        pianissimo.compile(blobs_onnx, rows[:, :15], machine=MACHINE)
