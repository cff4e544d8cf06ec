"""Masked activations of PyTorch: they train, export, and come back with their masks."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")

import pianissimo  # noqa: E402
from conftest import MACHINE  # noqa: E402
from pianissimo import nn  # noqa: E402
from pianissimo.errors import InvalidArgument  # noqa: E402


def network() -> torch.nn.Sequential:
    """A small network of pictures with both kinds of activation."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, stride=2, padding=1),
        torch.nn.BatchNorm2d(4),
        nn.MaskedReLU((4, 4, 4)),
        torch.nn.Conv2d(4, 4, 3, padding=1),
        nn.Quadratic(4),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 16),
        nn.MaskedReLU((16,)),
        torch.nn.Linear(16, 2),
    )


def pictures(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures whose left or right half is bright, and which."""
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 2, count)
    pixels = rng.integers(0, 120, (count, 1, 8, 8))
    for picture, label in zip(pixels, labels):
        picture[:, :, 4 * label : 4 * label + 4] += 120
    return pixels.astype(np.uint8), labels


def trained() -> tuple[torch.nn.Sequential, np.ndarray, np.ndarray]:
    """The network, trained with a price on ReLUs, and its data."""
    torch.manual_seed(3)
    model = network()
    pixels, labels = pictures(256)
    inputs, wanted = torch.tensor(pixels / 255.0, dtype=torch.float32), torch.tensor(labels)
    loss = torch.nn.functional.cross_entropy

    def train(steps: int, weight: float) -> float:
        model.train()
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.Adam(parameters, lr=0.02)
        for _ in range(steps):
            optimiser.zero_grad()
            found = loss(model(inputs), wanted)
            (found + weight * nn.price(model)).backward()
            optimiser.step()
        return float(found.detach())

    train(60, 1e-2)
    assert float(nn.price(model).detach()) < 60, "the price moves gates"
    nn.keep(model, relus=20)
    assert train(60, 0.0) < 0.3
    model.eval()
    return model, pixels, labels


def test_a_masked_network_trains_exports_and_comes_back_with_its_masks() -> None:
    model, pixels, labels = trained()
    assert nn.relus(model) == 20
    report = pianissimo.compile(model, pixels, machine=MACHINE, batches=(), reveal="logits")
    assert report.relus == 20 and not model.training
    fresh = network()
    nn.load_masks(fresh, report)
    for ours, theirs in zip(nn._masked(model), nn._masked(fresh)):
        assert torch.equal(ours.mask, theirs.mask)
    # The circuit computes what PyTorch does.
    result = pianissimo.simulate(report, pixels[:4])
    with torch.no_grad():
        expected = model(torch.tensor(pixels[:4] / 255.0, dtype=torch.float32)).numpy()
    assert result.equal.all() and result.private.logits is not None
    assert (result.private.labels == expected.argmax(1)).all()
    assert np.abs(result.plain.logits - expected).max() < 0.1 * np.abs(expected).max()


def test_a_fresh_masked_relu_is_a_relu() -> None:
    layer, x = nn.MaskedReLU((3, 2, 2)), torch.randn(5, 3, 2, 2)
    assert torch.equal(layer(x), torch.relu(x))
    mask = torch.rand(3, 2, 2) < 0.5
    layer.choose(mask)
    assert torch.equal(layer(x), torch.where(mask, torch.relu(x), x))
    with pytest.raises(ValueError, match="mask"):
        layer.choose(torch.ones(3))


def test_gates_that_were_trained_are_not_exported_unchosen() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), nn.MaskedReLU((4,)), torch.nn.Linear(4, 2))
    with torch.no_grad():
        model[1].gate[0] = 0.5
    with pytest.raises(pianissimo.PianissimoError, match="keep"):
        pianissimo.compile(model, np.zeros((64, 4), dtype=np.float32), machine=MACHINE)


def test_a_module_needs_a_shape() -> None:
    with pytest.raises(InvalidArgument, match="input="):
        pianissimo.compile(torch.nn.Linear(4, 2), "synthetic", machine=MACHINE)
