"""A source with buckets: each size converted by itself, all files in one artifact.

Always true
 1. Every size is made by the same plan: the same layers in the same precision, calibrated with the same samples.
 2. One set of bindings serves all sizes, as a manifest has one; what would need two is no artifact.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from converters.backends.artifact import Artifact
from converters.backends.sharing import Store, share
from edgekit.errors import ToolFailedError


def gathered(
    sizes: Sequence[int],
    make: Callable[[int, Path], Artifact],
    folder: Path,
    move_weights: Callable[[Path, Store], None],
) -> Artifact:
    """`make(index, folder)` for each size, its files renamed from NAME.SUFFIX to NAME-SIZE.SUFFIX, what
    they have in common in one of its own.

    Raises: ToolFailedError if the sizes' tensors are called differently; what `make` raises.
    """
    made: list[Artifact] = []
    for index, size in enumerate(sizes):
        own = folder / str(size)
        own.mkdir()
        artifact = make(index, own)
        for file in artifact.files:
            file.rename(folder / _named(file.name, size))
        own.rmdir()
        made.append(replace(artifact, folder=folder, model=_named(artifact.model, size)))
    last = made[-1]
    if any(artifact.bindings != last.bindings for artifact in made):
        raise ToolFailedError("the converter names the tensors of one bucket differently from another's")
    notes = dict.fromkeys(note for artifact in made for note in artifact.notes)
    models = tuple(artifact.model for artifact in made)
    options = {name: value for artifact in made for name, value in artifact.options.items()}
    share(folder, models, move_weights)
    return replace(last, notes=tuple(notes), models=models, options=options)


def _named(name: str, size: int) -> str:
    path = Path(name)
    return f"{path.stem}-{size}{path.suffix}"
