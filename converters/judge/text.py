"""Error rates of recognised text: edits over the label's length, in characters or in words.

Scores (…, T, classes) are decoded greedily by CTC: the best class of each step, repeats merged, blanks dropped
(Graves et al. 2006, "Connectionist Temporal Classification", §3.2). Whole-number outputs (N, T) count as decoded, ended by
a negative number.

Labels are texts, which need the alphabet, or classes (N, L) ended by a negative number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import DataError, ProjectError
from edgekit.tensors import Array

BLANK = 0
END = -1
IDS = "ids"


@dataclass(frozen=True)
class Alphabet:
    """`characters[k]` is what class k writes; class 0 is the blank. Empty where none was given."""

    characters: tuple[str, ...] = ()

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.characters[index] for index in ids)


NO_ALPHABET = Alphabet()


def read_alphabet(path: Path) -> Alphabet:
    """A UTF-8 file whose line k (from 0) is what class k writes; the first line, the blank's, is not used.

    Raises: ProjectError.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProjectError(
            f"{path}: data.alphabet: not a readable UTF-8 file ({error}); line k is what class k writes"
        ) from error
    # Not splitlines(): alphabets hold characters that it takes for line ends, such as U+2028.
    return Alphabet(tuple(content.removesuffix("\n").split("\n")))


def greedy(outputs: Mapping[str, Array]) -> dict[str, Array]:
    """The classes that the first output's samples write, (N, T) int64, ended and padded by `END`."""
    values = next(iter(outputs.values()))
    if values.dtype.kind in "iu":
        return {IDS: values.reshape(len(values), -1).astype(np.int64)}
    best = values.argmax(axis=-1).reshape(len(values), -1)
    steps = best.shape[1]
    decoded = np.full((len(best), steps), END, np.int64)
    for row, classes in zip(decoded, best, strict=True):
        fresh = np.concatenate([[True], classes[1:] != classes[:-1]])
        kept = classes[fresh & (classes != BLANK)]
        row[: len(kept)] = kept
    return {IDS: decoded}


def character_errors(alphabet: Alphabet, digest: Mapping[str, Array], labels: Array) -> NDArray[np.float64]:
    """Edits and label characters of each sample, (N, 2). Raises: DataError."""
    pairs = _pairs(alphabet, digest, labels)
    return np.array([(distance(found, wanted), len(wanted)) for found, wanted in pairs], np.float64)


def word_errors(alphabet: Alphabet, digest: Mapping[str, Array], labels: Array) -> NDArray[np.float64]:
    """Edits and label words of each sample, (N, 2). Raises: DataError; ProjectError without an alphabet."""
    if not alphabet.characters:
        raise ProjectError(
            "metric 'wer' needs [data] alphabet: words are told apart by the spaces in the text"
        )
    pairs = _pairs(alphabet, digest, labels)
    return np.array(
        [
            (distance(found.split(), wanted.split()), len(wanted.split()))
            for found, wanted in ((_text(alphabet, left), _text(alphabet, right)) for left, right in pairs)
        ],
        np.float64,
    )


def distance(found: Sequence[object], wanted: Sequence[object]) -> int:
    """Insertions, deletions and replacements that turn one into the other (Levenshtein 1966)."""
    row = list(range(len(wanted) + 1))
    for index, have in enumerate(found, 1):
        diagonal, row[0] = row[0], index
        for place, want in enumerate(wanted, 1):
            diagonal, row[place] = (
                row[place],
                min(row[place] + 1, row[place - 1] + 1, diagonal + (have != want)),
            )
    return row[-1]


def _pairs(
    alphabet: Alphabet, digest: Mapping[str, Array], labels: Array
) -> list[tuple[Sequence[object], Sequence[object]]]:
    """What was read and what was written, as characters where labels are texts, otherwise as classes."""
    found = [_until_end(row) for row in digest[IDS]]
    given = np.asarray(labels)
    if given.dtype.kind in "iu":
        return [(ids, _until_end(row)) for ids, row in zip(found, given.reshape(len(found), -1), strict=True)]
    if given.dtype.kind != "U" or given.ndim != 1:
        raise DataError(
            f"labels {given.dtype} {given.shape}: error rates of text need a text for each sample, or its classes"
            " (N, L) ended by -1"
        )
    if not alphabet.characters:
        raise ProjectError(
            "labels are texts: [data] alphabet must name the file that says which class writes what"
        )
    most = max((max(ids, default=0) for ids in found), default=0)
    if most >= len(alphabet.characters):
        raise ProjectError(
            f"data.alphabet has {len(alphabet.characters)} lines, and the model wrote class {most}"
        )
    return [(alphabet.decode(ids), str(label)) for ids, label in zip(found, given, strict=True)]


def _text(alphabet: Alphabet, value: Sequence[object]) -> str:
    return value if isinstance(value, str) else alphabet.decode([int(str(index)) for index in value])


def _until_end(row: Array) -> list[int]:
    ids: list[int] = []
    for index in row.tolist():
        if index < 0:
            break
        ids.append(int(index))
    return ids
