"""Train `small` further on samples that the fleet brought back, so that it reads them and what it read before.

    python retrain.py labelled.npz

`labelled.npz` has `x` (N, 8, 8) with values 0..16 and `labels` (N,), as `edgekit build` takes them. Each pass goes over the
training images and, as often as it makes them count alike, over the samples. Saves `weights/retrained.pt`.
"""

import sys
from pathlib import Path

import digits
import torch
from torch import nn

from edgekit.samples import load_npz

PASSES = 12


def retrain(path: Path) -> nn.Module:
    """`small`, trained on. Raises: DataError if the file is not such an archive."""
    samples = load_npz(path)
    images, labels = (torch.from_numpy(array[: digits.TRAINING]) for array in digits.split())
    new = torch.from_numpy(samples.inputs["x"]).float()
    labels_of_new = torch.from_numpy(samples.labels).long()
    times = max(1, len(images) // len(new))
    images = torch.cat([images, new.repeat(times, 1, 1)]).unsqueeze(1) * digits.SCALE
    labels = torch.cat([labels, labels_of_new.repeat(times)])
    torch.manual_seed(13)
    model = digits.small().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(PASSES):
        for batch in torch.randperm(len(images)).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return model.eval()


def main() -> None:
    torch.set_num_threads(
        1
    )  # the other cores have a fleet to run, and threads that wait for each other are slow
    model = retrain(Path(sys.argv[1]))
    torch.save(model.state_dict(), digits.WEIGHTS / "retrained.pt")
    print(f"retrained: {digits.accuracy(model):.1%} of the evaluation images as they were are right still")


if __name__ == "__main__":
    main()
