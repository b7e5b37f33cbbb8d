"""The nets that `forms.py` trains: images (N, 8, 8) of digits to ten scores."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import nn

ONE = torch.zeros(1, 8, 8)


def trained(
    net: nn.Module, steps: int, rate: float, inputs: Sequence[torch.Tensor], labels: torch.Tensor
) -> None:
    """All samples in each step; the seed is set by whoever made the net."""
    optimizer = torch.optim.Adam(net.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(*inputs), labels).backward()
        optimizer.step()
    net.eval()


def convolutions() -> nn.Module:
    """(N, 1, 8, 8) to ten scores."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


class Scores(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.Embedding(17, 16)
        self.rows = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.head = nn.Linear(256, 10)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.rows(self.levels(pixels).flatten(2)).flatten(1))
        return scores


class Tokens(nn.Module):
    """Levels of grey (batch, 8, 8) int64 from 0 to 16, each with an embedding; answers with a dict."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.scores = Scores()

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.scores(pixels)
        return {"logits": logits, "digit": logits.argmax(-1)}


class Recurrent(nn.Module):
    """Row by row, the head on the last state; `lengths` (N) says after how many rows."""

    # Torch's gates in ONNX's order.
    ORDER: ClassVar = {"GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}

    def __init__(self, kind: str, hidden: int, *, both_ways: bool = False) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.kind, self.hidden, self.directions = kind, hidden, 1 + both_ways
        self.layer = getattr(nn, kind)(8, hidden, batch_first=True, bidirectional=both_ways)
        self.head = nn.Linear(self.directions * hidden, 10, bias=False)

    def forward(self, rows: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        fed = rows
        if lengths is not None:
            fed = nn.utils.rnn.pack_padded_sequence(rows, lengths, batch_first=True, enforce_sorted=False)
        _, state = self.layer(fed)
        last = state[0] if self.kind == "LSTM" else state
        scores: torch.Tensor = self.head(last.transpose(0, 1).flatten(1))
        return scores

    def constants(self) -> dict[str, np.ndarray]:
        """As `recurrent_models.net` takes them."""
        suffixes = ("", "_reverse")[: self.directions]
        held = {name: tensor.numpy() for name, tensor in self.layer.state_dict().items()}

        def ordered(name: str) -> np.ndarray:
            parts = [np.split(held[f"{name}_l0{suffix}"], len(self.ORDER[self.kind])) for suffix in suffixes]
            return np.stack([np.concatenate([part[i] for i in self.ORDER[self.kind]]) for part in parts])

        return {
            "w": ordered("weight_ih"), "r": ordered("weight_hh"),
            "b": np.concatenate([ordered("bias_ih"), ordered("bias_hh")], axis=1),
            "head": self.head.weight.detach().numpy().T.copy(),
        }  # fmt: skip


class Looped(nn.Module):
    """Eight numbers turned so many times by one matrix; fed once by all pixels, or (`by_row`) by a row each turn."""

    def __init__(self, turns: int, *, by_row: bool = False) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.turns, self.by_row = turns, by_row
        for name, shape in (("enter", (8 if by_row else 64, 8)), ("turn", (8, 8)), ("head", (8, 10))):
            self.register_parameter(name, nn.Parameter(torch.randn(shape) / shape[0] ** 0.5))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        state = torch.zeros(len(images), 8) if self.by_row else images.flatten(1) @ self.enter
        for step in range(self.turns):
            fed = images[:, step] @ self.enter if self.by_row else 0
            state = torch.tanh(fed + state @ self.turn)
        return state @ self.head

    def array(self, name: str) -> np.ndarray:
        array: np.ndarray = self.get_parameter(name).detach().numpy()
        return array
