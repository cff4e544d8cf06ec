"""A small trained network, the bundled one, and a server, for tests and examples."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pianissimo

ROOT = Path(__file__).parent.parent
#: Times are predicted for a machine whose profile comes with the package: nothing is measured.
MACHINE = "zen4-avx512"

# Without PyTorch there is nothing to import; tests/test_nn.py says that it is skipped.
collect_ignore = [] if importlib.util.find_spec("torch") else ["pianissimo/nn.py"]


def _blobs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of 16 values around one of three centres, and which."""
    centres = np.random.default_rng(0).normal(0, 2, (3, 16))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    rows = centres[labels] + rng.normal(0, 1, (count, 16))
    return rows.astype(np.float32), labels


def trained(rows: np.ndarray, labels: np.ndarray, hidden: int = 32) -> list[np.ndarray]:
    """Weights and biases of two dense layers with ReLUs between, by gradient descent."""
    rng = np.random.default_rng(1)
    classes = int(labels.max()) + 1
    w1, b1 = rng.normal(0, 0.3, (rows.shape[1], hidden)), np.zeros(hidden)
    w2, b2 = rng.normal(0, 0.3, (hidden, classes)), np.zeros(classes)
    wanted = np.eye(classes)[labels]
    for _ in range(300):
        inner = rows @ w1 + b1
        active = np.maximum(inner, 0)
        logits = active @ w2 + b2
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        up = (shares - wanted) / len(rows)
        down = (up @ w2.T) * (inner > 0)
        w2 -= active.T @ up
        b2 -= up.sum(0)
        w1 -= rows.T @ down
        b1 -= down.sum(0)
    return [array.astype(np.float32) for array in (w1, b1, w2, b2)]


def write_onnx(layers: list[np.ndarray], path: Path) -> Path:
    """Two dense layers with ReLUs between, as an ONNX model."""
    onnx = pytest.importorskip("onnx", reason="pip install onnx")
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    names = ["w1", "b1", "w2", "b2"]
    tensors = [onnx.numpy_helper.from_array(a, name) for a, name in zip(layers, names)]
    features, classes = layers[0].shape[0], layers[3].shape[0]
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["inner"], name="first"),
            helper.make_node("Relu", ["inner"], ["active"], name="relu"),
            helper.make_node("Gemm", ["active", "w2", "b2"], ["y"], name="second"),
        ],
        "blobs",
        [helper.make_tensor_value_info("x", float32, [None, features])],
        [helper.make_tensor_value_info("y", float32, [None, classes])],
        tensors,
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


@pytest.fixture(scope="session")
def bundled() -> Path:
    """The bundled network of pictures."""
    return ROOT / "models" / "cifar10-small"


@pytest.fixture(scope="session")
def ship() -> np.ndarray:
    """A picture of a ship, which the bundled network knows: sky, a hull and the sea."""
    picture = np.zeros((3, 32, 32), dtype=np.uint8)
    picture[:, :18] = np.array([150, 190, 230])[:, None, None]
    picture[:, 18:] = np.array([30, 70, 120])[:, None, None]
    picture[:, 14:20, 4:28] = np.array([110, 40, 40])[:, None, None]
    picture[:, 9:14, 18:24] = 235
    return picture


@pytest.fixture(scope="session")
def rows() -> np.ndarray:
    """Rows of values, on which the small network was trained."""
    return _blobs(400, seed=2)[0]


@pytest.fixture(scope="session")
def labelled() -> tuple[np.ndarray, np.ndarray]:
    """Other rows, with their labels."""
    return _blobs(200, seed=3)


@pytest.fixture(scope="session")
def blobs_layers(rows: np.ndarray) -> list[np.ndarray]:
    """The small network's weights and biases."""
    return trained(rows, _blobs(400, seed=2)[1])


@pytest.fixture(scope="session")
def blobs_onnx(blobs_layers: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network as an ONNX model."""
    return write_onnx(blobs_layers, tmp_path_factory.mktemp("onnx") / "blobs.onnx")


@pytest.fixture(scope="session")
def blobs(blobs_onnx: Path, rows: np.ndarray) -> pianissimo.Report:
    """The small network, compiled to reveal labels."""
    return pianissimo.compile(blobs_onnx, rows, machine=MACHINE)


@pytest.fixture(scope="session")
def blobs_logits(blobs_onnx: Path, rows: np.ndarray) -> pianissimo.Report:
    """The small network, compiled to reveal logits."""
    return pianissimo.compile(blobs_onnx, rows, machine=MACHINE, reveal="logits")


@pytest.fixture(scope="session")
def server(
    blobs: pianissimo.Report,
    blobs_logits: pianissimo.Report,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[pianissimo.Server]:
    """A server of both forms of the small network."""
    models = {"labels": blobs, "logits": blobs_logits}
    state = tmp_path_factory.mktemp("server")
    with pianissimo.Server(models, default_model="labels", state=state) as server:
        yield server


@pytest.fixture
def client(server: pianissimo.Server, tmp_path: Path) -> Iterator[pianissimo.Client]:
    """A client of that server with no bundle yet."""
    state = tmp_path / "client"
    with pianissimo.Client(server.address, server.fingerprint, state=state) as client:
        yield client


@pytest.fixture(autouse=True)
def names_in_examples(
    doctest_namespace: dict[str, object], request: pytest.FixtureRequest
) -> None:
    """What the examples in docstrings call by name."""
    if not isinstance(request.node, pytest.DoctestItem):
        return
    names = ("bundled", "rows", "blobs_onnx", "server")
    doctest_namespace.update({name: request.getfixturevalue(name) for name in names})
    doctest_namespace["np"] = np
    doctest_namespace["folder"] = request.getfixturevalue("tmp_path")
