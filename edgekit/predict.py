"""Answers of an opened bundle to input files, one after the other."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from edgekit.errors import DataError, InputError
from edgekit.inputs import read_input
from edgekit.local import OpenBundle
from edgekit.samples import Samples
from edgekit.selftest import iter_samples
from edgekit.transforms import JSON, postprocess


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """One sample's outputs after post-processing and the engine's milliseconds, or why there are none.

    `sample` counts within a file that holds several.
    """

    input: str
    sample: int | None = None
    outputs: dict[str, JSON] = {}
    latency_ms: float | None = None
    error: str = ""


def answers(here: OpenBundle, files: Iterable[Path]) -> Iterator[Answer]:
    """One answer for each sample of each file; a file that cannot be used gets one with its error.

    Raises: EngineError, which no other file would escape either.
    """
    for path in files:
        try:
            yield from _of_file(here, path, read_input(path, here.manifest))
        except (DataError, InputError) as error:
            yield Answer(str(path), error=str(error))


def _of_file(here: OpenBundle, path: Path, samples: Samples) -> Iterator[Answer]:
    manifest = here.manifest
    internal = {pair.output for pair in manifest.state}
    results = iter_samples(here.loaded.run, manifest.admitted, manifest.state, manifest.preprocess, samples)
    for index, (outputs, elapsed_ms) in enumerate(results):
        public = {name: array for name, array in outputs.items() if name not in internal}
        yield Answer(
            input=str(path),
            sample=index if len(samples) > 1 else None,
            outputs=postprocess(manifest.postprocess, outputs if manifest.postprocess else public),
            latency_ms=round(elapsed_ms, 3),
        )
