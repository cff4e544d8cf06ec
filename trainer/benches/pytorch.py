#!/usr/bin/env python3
"""Images a second that PyTorch trains, for the networks of pi-train: same layers, batch norm, SGD with Nesterov momentum,
shift and flip of random images. Needs the packages torch and numpy; nothing else of the project does.

    python3 trainer/benches/pytorch.py --network resnet20 --width 0.5 --batch 128 --threads 2
"""

import argparse
import json
import time

import torch
from torch import nn
from torch.nn import functional as F


def conv_norm(c_in, c_out, kernel, stride=1):
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


class Block(nn.Module):
    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.a = conv_norm(c_in, c_out, 3, stride)
        self.b = conv_norm(c_out, c_out, 3)
        same = c_in == c_out and stride == 1
        self.shortcut = nn.Identity() if same else conv_norm(c_in, c_out, 1, stride)

    def forward(self, x):
        return F.relu(self.b(F.relu(self.a(x))) + self.shortcut(x))


def residual(widths, blocks):
    layers = [conv_norm(3, widths[0], 3), nn.ReLU()]
    c_in = widths[0]
    for group, c_out in enumerate(widths):
        for number in range(blocks):
            layers.append(Block(c_in, c_out, 2 if group > 0 and number == 0 else 1))
            c_in = c_out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, 10))


def lean9(width):
    widths = [max(1, round(width * c)) for c in (24, 64, 256, 256)]
    layers = [nn.Conv2d(3, widths[0], 2), nn.ReLU()]
    for c_in, c_out in zip(widths, widths[1:]):
        layers += [*conv_norm(c_in, c_out, 3), nn.AvgPool2d(2), nn.ReLU()]
        layers += [*conv_norm(c_out, c_out, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


def network(name, width):
    scaled = lambda channels: [max(1, round(width * c)) for c in channels]
    return {
        "resnet20": lambda: residual(scaled([16, 32, 64]), 3),
        "resnet18": lambda: residual(scaled([64, 128, 256, 512]), 2),
        "lean9": lambda: lean9(width),
    }[name]()


def augmented(images, generator):
    """One shift of up to four pixels for the batch, a flip for each image: less work than pi-train's."""
    down, right = torch.randint(0, 9, (2,), generator=generator).tolist()
    padded = F.pad(images, (4, 4, 4, 4), mode="reflect")[:, :, down : down + 32, right : right + 32]
    flip = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(flip[:, None, None, None], padded.flip(3), padded)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--network", choices=["resnet20", "resnet18", "lean9"], default="resnet20")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--channels-last", action="store_true", help="PyTorch's other layout")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(1)
    model = network(arguments.network, arguments.width).to(arguments.device)
    images = torch.randn(arguments.batch, 3, 32, 32, generator=generator)
    if arguments.channels_last:
        model, images = (x.to(memory_format=torch.channels_last) for x in (model, images))
    labels = torch.randint(0, 10, (arguments.batch,), generator=generator).to(arguments.device)
    optimiser = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4
    )

    def step():
        batch = augmented(images, generator).to(arguments.device)
        loss = F.cross_entropy(model(batch), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item()

    for _ in range(3):
        step()
    start = time.perf_counter()
    for _ in range(arguments.steps):
        step()
    seconds = time.perf_counter() - start
    print(
        json.dumps(
            {
                "framework": f"torch {torch.__version__}",
                "network": arguments.network,
                "width": arguments.width,
                "batch": arguments.batch,
                "threads": arguments.threads,
                "images_per_s": round(arguments.batch * arguments.steps / seconds, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
