"""Handwritten digits: the networks, their training, and the data that `edgekit build` judges them on.

Data: scikit-learn's `load_digits`, 1,797 labelled 8x8 images with values 0..16, split once by a fixed seed into
training (1,000), calibration (200) and evaluation (597). Raw images go in; `edgekit.toml` declares the pre-processing.

Run it to train the networks and save their weights:  python digits.py [hasty] [small] [heavy]
"""

import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

TRAINING, CALIBRATION = 1000, 200
SCALE = 1 / 16  # what the declared pre-processing does
WEIGHTS = Path(__file__).parent / "weights"


def split() -> tuple[np.ndarray, np.ndarray]:
    """All images (1797, 8, 8) float32 and labels (1797,) int64, shuffled once."""
    data = load_digits()
    order = np.random.default_rng(7).permutation(len(data.target))
    return data.images[order].astype(np.float32), data.target[order].astype(np.int64)


def calibration() -> Iterator[tuple[dict[str, np.ndarray], int]]:
    images, labels = split()
    for image, label in zip(images[TRAINING:][:CALIBRATION], labels[TRAINING:][:CALIBRATION], strict=True):
        yield {"x": image}, int(label)


def evaluation() -> Iterator[tuple[dict[str, np.ndarray], int]]:
    images, labels = split()
    start = TRAINING + CALIBRATION
    for image, label in zip(images[start:], labels[start:], strict=True):
        yield {"x": image}, int(label)


def inverted(
    samples: Iterable[tuple[dict[str, np.ndarray], int]],
) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """The same digits, dark on light where they were light on dark: what another camera or paper may bring."""
    for inputs, label in samples:
        yield {"x": WHITEST - inputs["x"]}, label


def a_few_for_calibration() -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """Enough for a network that takes its time."""
    yield from itertools.islice(calibration(), 20)


def a_few_for_evaluation() -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """Enough to show a drop of five points."""
    yield from itertools.islice(evaluation(), 130)


class Small(nn.Module):
    """Two convolutions and a linear layer: some 10,000 weights."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * width * 16, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 1, 8, 8) in 0..1 to logits (N, 10)."""
        return self.layers(x)


class Heavy(nn.Module):
    """A wide network on enlarged images, averaged over 49 copies shifted by less than a pixel.

    Test-time augmentation is said to buy accuracy; here it costs some seven thousand times the work of `Small`: a release that looks
    fine in a notebook and is too slow on a device.
    """

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.enlarge = nn.Upsample(scale_factor=4, mode="nearest")
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(4),
            nn.Flatten(),
            nn.Linear(width * 64, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 1, 8, 8) in 0..1 to logits (N, 10); N is 1 outside training."""
        large = self.enlarge(x)
        if self.training:
            return self.features(large)
        padded = nn.functional.pad(large, (3, 3, 3, 3))
        shifts = [padded[:, :, dy : dy + 32, dx : dx + 32] for dy in range(7) for dx in range(7)]
        return self.features(torch.cat(shifts)).mean(0, keepdim=True)


# Name → (network, passes over the training data, evaluation images that it is tried on: the heavy one takes its time).
NETWORKS = {"hasty": (Small, 2, 597), "small": (Small, 30, 597), "heavy": (Heavy, 3, 20)}
WHITEST = 16.0  # the largest value of an image


def train(name: str) -> nn.Module:
    """Train one of `NETWORKS` from a fixed seed."""
    kind, epochs, _ = NETWORKS[name]
    torch.manual_seed(11)
    model = kind()
    images, labels = (torch.from_numpy(array[:TRAINING]) for array in split())
    images = images.unsqueeze(1) * SCALE
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(TRAINING).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return model.eval()


def accuracy(model: nn.Module, count: int | None = None) -> float:
    """Share of the first `count` evaluation images (all by default) whose digit is right."""
    samples = list(itertools.islice(evaluation(), count))
    with torch.inference_mode():
        right = [
            int(model(torch.from_numpy(x["x"])[None, None] * SCALE).argmax()) == label for x, label in samples
        ]
    return sum(right) / len(right)


def _load(name: str, kind: type[nn.Module] | None = None) -> nn.Module:
    model = (kind or NETWORKS[name][0])()
    model.load_state_dict(torch.load(WEIGHTS / f"{name}.pt", weights_only=True))
    return model.eval()


def hasty() -> nn.Module:
    """Release 1: stopped after two passes."""
    return _load("hasty")


def small() -> nn.Module:
    """Release 2: the same network, trained to the end."""
    return _load("small")


def heavy() -> nn.Module:
    """Release 3: more accurate on paper, far too slow."""
    return _load("heavy")


def retrained() -> nn.Module:
    """Release 5: `small`, trained further on samples of the fleet (`retrain.py`)."""
    return _load("retrained", Small)


def main() -> None:
    """Train the named networks (all by default) and save their weights beside this file."""
    WEIGHTS.mkdir(exist_ok=True)
    for name in sys.argv[1:] or NETWORKS:
        model = train(name)
        torch.save(model.state_dict(), WEIGHTS / f"{name}.pt")
        count = NETWORKS[name][2]
        print(f"{name}: {accuracy(model, count):.1%} of {count} evaluation images right")


if __name__ == "__main__":
    main()
