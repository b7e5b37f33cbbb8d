"""What backends convert from: the source in canonical ONNX with its data, of each bucket where there are any."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from converters.backends import Keep, Prepared
from converters.data.datasets import Datasets, feeds_fingerprint
from converters.graph import canonical
from converters.graph.canonical import Canonical
from converters.keep.artifacts import Cache
from converters.recipes import facts
from converters.source.source import Source
from edgekit import __version__
from edgekit.errors import ToolFailedError
from edgekit.tensors import Array


@dataclass(frozen=True)
class Forms:
    """`known` are forms that another process has made, in the order of the buckets."""

    source: Source
    data: Datasets
    cache: Cache
    folder: Path
    tell: Callable[[str], None]
    known: tuple[Canonical, ...]

    def prepared(self) -> tuple[Prepared, ...]:
        """One for each bucket, smallest first; without buckets, one. Raises: ToolFailedError."""
        data, buckets = self.data, self.source.buckets
        if buckets is None:
            form = self._form(0, self.source, data.feeds)
            keep = self._keep(self.source, data.feeds)
            return (Prepared(self.source, form, data.calibration, data.shifted, self.tell, keep=keep),)
        return tuple(
            Prepared(
                source,
                self._form(index, source, data.feeds_at(size)),
                data.calibration_at(size),
                data.shifted_at(size),
                self.tell,
                keep=self._keep(source, data.feeds_at(size)),
            )
            for index, (size, source) in enumerate(zip(buckets.sizes, self.source.by_size, strict=True))
        )

    def _form(self, index: int, source: Source, feeds: Sequence[Mapping[str, Array]]) -> Canonical | None:
        """The canonical form of a source of fixed shapes; None where nothing is converted from it."""
        if self.known:
            return self.known[index]
        if source.native is not None:
            return None
        try:
            return self._made(index, source, feeds)
        except ToolFailedError as error:
            if source.quantized is None:
                raise
            # What takes the file as it is goes on.
            self.tell(f"no candidate is made anew of {source.quantized.what}: {error}")
            return None

    def _made(self, index: int, source: Source, feeds: Sequence[Mapping[str, Array]]) -> Canonical:
        folder = self.folder / f"source-{index}"
        folder.mkdir()
        parts = self._parts("canonical", source, feeds, "onnxruntime")

        def make(target: Path) -> dict[str, object]:
            self.tell("bringing the source into canonical ONNX")
            made = canonical.canonicalize(source, feeds, target)
            return {"parity": made.parity, "notes": list(made.notes)}

        meta = self.cache.fetch(parts, folder, make)
        return msgspec.convert({**meta, "path": folder / "canonical.onnx"}, Canonical)

    def _keep(self, source: Source, feeds: Sequence[Mapping[str, Array]]) -> Keep:
        """What the recipes of an engine have in common, made once for all processes and builds."""

        def keep(what: str, folder: Path, make: Callable[[Path], dict[str, object]]) -> dict[str, object]:
            return self.cache.fetch(self._parts(what, source, feeds, what.partition("/")[0]), folder, make)

        return keep

    @staticmethod
    def _parts(
        what: str, source: Source, feeds: Sequence[Mapping[str, Array]], engine: str
    ) -> dict[str, object]:
        """Everything that decides it, calibration data aside."""
        return {
            "edgekit": __version__,
            "feeds": feeds_fingerprint(feeds),
            "step": what,
            "source": source.sha256,
            "inputs": msgspec.to_builtins(source.inputs),
            "outputs": msgspec.to_builtins(source.outputs),
            "tools": {**canonical.tools(source), **facts.tools(engine)},
            "opset": canonical.OPSET,
        }
