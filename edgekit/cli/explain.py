"""`edgekit explain`: what a bundle's answer to one input rests on, beside what the float source's does."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from edgekit import engines, local, picture
from edgekit import explain as rules
from edgekit.bundle import sha256_file
from edgekit.cli import render
from edgekit.cli.bundles import BUNDLE, INPUT, json_option
from edgekit.errors import DataError, EngineError, UsageError
from edgekit.explain import Asked, Explanation, Model
from edgekit.inputs import read_input
from edgekit.local import OpenBundle
from edgekit.manifest import EngineSpec, Manifest, TensorSpec
from edgekit.quiet import hushed
from edgekit.samples import Samples
from edgekit.selftest import golden_inputs, iter_samples
from edgekit.tensors import Array

# Parts that a table has lines for.
_SHOWN = 10
_SUFFIXES = (".png", ".html")


class _Told(msgspec.Struct, frozen=True, omit_defaults=True):
    """`--json`: of one input."""

    input: str
    kind: str
    bundle: Explanation
    source: Explanation | None = None
    similarity: float | None = None


@click.command(
    epilog="Examples:  edgekit explain digits.edgekit seven.png --out why.html"
    "   |   edgekit explain digits.edgekit seven.npy --source model.onnx"
)
@click.argument("bundle", type=BUNDLE)
@click.argument("input_file", metavar="INPUT", type=INPUT)
@click.option("--source", type=BUNDLE, help="The float ONNX model, to set beside the bundle.")
@click.option("--output", default="", help="The output that is explained; the first, if none is named.")
@click.option(
    "--entry", type=int, help="Its entry (a class), counted from 0; the best one, if none is given."
)
@click.option(
    "--cells", type=click.IntRange(2, 64), default=8, show_default=True, help="Parts along each axis."
)
@click.option("--out", type=BUNDLE, help="Draw it there: .png or .html.")
@json_option
def explain(
    bundle: Path,
    input_file: Path,
    *,
    source: Path | None,
    output: str,
    entry: int | None,
    cells: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Say what the answer to an input rests on: patches of a picture or pieces of a sequence are replaced by its mean,
    features by what the bundle's golden samples have there, and what the answer loses is shown.
    """
    if out is not None and out.suffix not in _SUFFIXES:
        raise UsageError(f"--out {out}: a picture is drawn as {' or '.join(_SUFFIXES)}")
    with local.opened(bundle) as here:
        sample = _one(input_file, here.manifest)
        asked = rules.ask(_called(here, here.loaded.run)(sample), output, entry)
        others = [
            golden.sample(index)
            for golden in [golden_inputs(here.manifest, here.folder)]
            for index in range(len(golden))
        ]
        with render.progress() as progress, _source(here, source) as float_model:
            names = [name for name in sample if name not in {pair.input for pair in here.manifest.state}]
            found = []
            for name in progress.track(names, description="taking parts away"):
                how = rules.layout(name, sample[name], cells)
                own = rules.explained(_called(here, here.loaded.run), sample, how, asked, others)
                theirs = float_model and rules.explained(float_model, sample, how, asked, others)
                alike = rules.similarity(own, theirs) if theirs else None
                found.append(_Told(name, how.kind, own, theirs or None, alike))
        notes = _notes(here.manifest, source, asked)
    if out is not None:
        _draw(out, bundle.name, sample, found, notes)
    if as_json:
        render.print_json({"bundle": str(bundle), "asked": asked, "inputs": found, "notes": notes})
        return
    for told in found:
        _show(told, asked)
    for note in notes:
        render.note(f"  {note}")


def _one(path: Path, manifest: Manifest) -> dict[str, Array]:
    found = read_input(path, manifest)
    if len(found) != 1:
        raise DataError(
            f"{path}: {len(found)} samples; one answer at a time is explained, so give a file of one"
        )
    return found.sample(0)


def _called(here: OpenBundle, run: Model) -> Model:
    """From a raw sample to outputs, states at zero."""
    manifest = here.manifest

    def call(sample: Mapping[str, Array]) -> Mapping[str, Array]:
        samples = Samples({name: array[None] for name, array in sample.items()})
        pieces = (manifest.admitted, manifest.state, manifest.preprocess, samples)
        return next(iter_samples(lambda ready: dict(run(ready)), *pieces))[0]

    return call


@contextmanager
def _source(here: OpenBundle, path: Path | None) -> Iterator[Model | None]:
    """The float model behind the bundle's own pre-processing. Raises: UsageError, EngineError."""
    if path is None:
        yield None
        return
    if path.suffix.lower() != ".onnx" or not path.is_file():
        raise UsageError(f"--source {path}: give the float model as an ONNX file that is there")
    spec = EngineSpec("onnxruntime", "", path.name, {"graph_optimization_level": "basic"})
    with hushed():
        outputs = [TensorSpec(each.name, each.dtype, each.shape) for each in here.manifest.outputs]
        inputs = [TensorSpec(each.name, each.dtype, each.shape) for each in here.manifest.inputs]
        model = engines.get("onnxruntime").load(path, spec, inputs, outputs, None)

    def run(ready: Mapping[str, Array]) -> Mapping[str, Array]:
        checked = here.loaded.checked(ready)
        try:
            return model.run(checked)
        except EngineError as error:
            raise UsageError(
                f"--source {path} takes or gives something else than the bundle's model ({error}); give the file that the"
                " bundle was built from"
            ) from error

    try:
        yield _called(here, run)
    finally:
        model.close()


def _notes(manifest: Manifest, source: Path | None, asked: Asked) -> list[str]:
    notes = []
    if asked.index is None:
        notes.append(f"output {asked.output!r} holds several answers: how far all of it moves is shown")
    if source is not None and sha256_file(source) != manifest.source_sha256:
        notes.append(f"{source} is not the file that this bundle was built from (another sha256)")
    return notes


def _show(told: _Told, asked: Asked) -> None:
    about = f"{asked.output}[{asked.index}]" if asked.index is not None else asked.output
    own = told.bundle.array.ravel()
    theirs = told.source.array.ravel() if told.source else None
    order = sorted(range(len(own)), key=lambda index: -abs(own[index]))[:_SHOWN]
    render.table(
        f"what {about} rests on, {told.input} ({told.kind}, {len(own)} parts)",
        ["part", "bundle", *(["source"] if theirs is not None else [])],
        [
            [
                told.bundle.layout.name(index),
                f"{own[index]:+.4g}",
                *([f"{theirs[index]:+.4g}"] if theirs is not None else []),
            ]
            for index in order
        ],
        numeric=("bundle", "source"),
    )
    if told.similarity is not None:
        click.echo(_alike(told.similarity))


def _alike(similarity: float) -> str:
    """NaN is what rests on nothing."""
    if math.isnan(similarity):
        return "bundle or source rests on nothing here: no rank correlation"
    return f"bundle and source: rank correlation {similarity:.3f}"


def _draw(path: Path, name: str, sample: Mapping[str, Array], found: list[_Told], notes: list[str]) -> None:
    figures: list[tuple[str, Any]] = []
    for told in found:
        for whose, each in (("bundle", told.bundle), ("source", told.source)):
            if each is not None:
                figures.append((f"{told.input}: {whose}", picture.drawn(sample[told.input], each)))
    if path.suffix == ".png":
        data = picture.png(picture.beside([image for _, image in figures]))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    else:
        alike = [f"{told.input}: {_alike(told.similarity)}" for told in found if told.similarity is not None]
        key = "Red parts speak for the answer, blue ones against it; the strongest is opaque."
        render.write_text(path, picture.html(f"What {name} rests on", figures, [*alike, key, *notes]))
    render.note(f"drew {path}")
