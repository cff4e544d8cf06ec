"""Activations for PyTorch that private inference can afford.

A ReLU costs a garbled circuit for each of its elements; an element that is left as it is costs
next to nothing, and a quadratic little. :class:`MaskedReLU` learns which elements need their ReLU
and keeps as many as you say; :class:`Quadratic` has trained coefficients for each channel. Both
export as plain ONNX, which ``pianissimo.compile`` reads back with their masks.

    model = Sequential(Conv2d(3, 16, 3), MaskedReLU((16, 30, 30)), Flatten(), Linear(14400, 10))
    train(model, loss + 1e-4 * nn.price(model))      # every ReLU is weighed
    nn.keep(model, relus=2000)                       # the 2000 that weigh most stay
    train(model, loss)                               # and the network gets used to it
    report = pianissimo.compile(model, images)

PyTorch is needed for this module, and for no other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    raise ImportError("pianissimo.nn needs PyTorch: pip install torch") from error

from ._report import Report

__all__ = ["MaskedReLU", "Quadratic", "keep", "load_masks", "price", "relus"]


class MaskedReLU(nn.Module):
    """A ReLU for some elements, and the identity for the others.

    Until :func:`keep` has chosen, every element is ``g relu(x) + (1 - g) x`` with a trained gate
    ``g`` from 0 to 1 that begins at 1: a network with all its ReLUs stays what it was. From then on
    ``mask`` says which elements are ReLUs.

    Args:
        shape: of one example: ``(C, H, W)``, or ``(C,)`` behind a dense layer.
        mask: which elements are ReLUs, if that is known already.
    """

    mask: Tensor
    chosen: Tensor

    def __init__(self, shape: Sequence[int], mask: Tensor | None = None) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.ones(tuple(shape)))
        self.register_buffer("mask", torch.ones(tuple(shape), dtype=torch.bool))
        self.register_buffer("chosen", torch.tensor(False))
        if mask is not None:
            self.choose(mask)

    def choose(self, mask: Tensor) -> None:
        """Fixes which elements are ReLUs."""
        if mask.shape != self.mask.shape:
            raise ValueError(f"a mask of {tuple(self.mask.shape)}, not {tuple(mask.shape)}")
        self.mask.copy_(mask.to(torch.bool))
        self.chosen.fill_(True)
        self.gate.requires_grad_(False)

    def open(self) -> Tensor:
        """How far each gate is open, from 0 to 1; the gradient passes at both ends."""
        return self.gate + (self.gate.clamp(0, 1) - self.gate).detach()

    def forward(self, x: Tensor) -> Tensor:
        """The activation of a batch ``[N, *shape]``."""
        if self.chosen:
            return torch.where(self.mask, torch.relu(x), x)
        gate = self.open()
        if torch.onnx.is_in_onnx_export():
            if not bool((gate == 1).all()):
                raise RuntimeError("gates were trained: call keep(model, relus) before exporting")
            return torch.relu(x)
        return gate * torch.relu(x) + (1 - gate) * x

    def extra_repr(self) -> str:
        """The shape, and how many elements are ReLUs."""
        return f"{tuple(self.mask.shape)}, {int(self.mask.sum())} ReLUs"


class Quadratic(nn.Module):
    """``a x^2 + b x + c`` with coefficients for each channel.

    It begins near the ReLU of a normalised input: ``0.23 x^2 + 0.5 x + 0.2``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        start = torch.tensor([0.23, 0.5, 0.2])
        self.coefficients = nn.Parameter(start[:, None].repeat(1, channels))

    def forward(self, x: Tensor) -> Tensor:
        """The activation of a batch ``[N, C, ...]``."""
        a, b, c = self.coefficients.reshape(3, 1, -1, *[1] * (x.dim() - 2))
        return a * x * x + b * x + c


def _masked(model: nn.Module) -> Iterator[MaskedReLU]:
    return (module for module in model.modules() if isinstance(module, MaskedReLU))


def price(model: nn.Module) -> Tensor:
    """The sum of all gates, to be added to the loss: the number of ReLUs, as training sees it."""
    gates = [module.open().sum() for module in _masked(model)]
    return torch.stack(gates).sum() if gates else torch.zeros(())


def relus(model: nn.Module) -> int:
    """Number of elements of all masked activations that are ReLUs."""
    return sum(int(module.mask.sum()) for module in _masked(model))


def keep(model: nn.Module, relus: int) -> None:
    """Keeps so many ReLUs, those with the largest gates; of equal ones, the first."""
    modules = list(_masked(model))
    if not modules or relus < 0:
        raise ValueError("keep needs a model with masked activations, and a number from 0")
    with torch.no_grad():
        gates = torch.cat([module.gate.reshape(-1) for module in modules])
        order = torch.argsort(gates, descending=True, stable=True)
        kept = torch.zeros_like(gates, dtype=torch.bool)
        kept[order[:relus]] = True
        parts = kept.split([module.gate.numel() for module in modules])
        for module, part in zip(modules, parts):
            module.choose(part.reshape(module.mask.shape))


def load_masks(model: nn.Module, report: Report) -> None:
    """Takes over the masks of a compiled network: each module that of the next layer of its size.

    So modules must stand in the order in which the network applies them.
    """
    layers = iter(report.kinds().values())
    for module in _masked(model):
        sized = (kinds for kinds in layers if kinds.size == module.mask.numel())
        kinds = next(sized, None)
        if kinds is None:
            raise ValueError(f"no layer with a mask of {tuple(module.mask.shape)} is left")
        module.choose(torch.tensor(kinds == 0).reshape(module.mask.shape))
