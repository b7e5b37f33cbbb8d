"""A bundle opened on this machine: checked, extracted to a temporary folder and loaded, for the `edgekit` command.

Nothing stays behind: the folder goes when the block ends, whatever ended it.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgekit import bundle as bundles
from edgekit import evidence, selftest
from edgekit.bundle import Bundle
from edgekit.engines import LoadedBundle
from edgekit.evidence import Statement
from edgekit.manifest import Manifest
from edgekit.selftest import SelfTestResult


@dataclass(frozen=True)
class OpenBundle:
    """A loaded bundle and the folder that it was extracted to."""

    bundle: Bundle
    folder: Path
    loaded: LoadedBundle

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest


@contextmanager
def opened(path: Path) -> Iterator[OpenBundle]:
    """Raises: BundleError, ManifestError; EngineMissingError, EngineError if it cannot run here."""
    bundle = bundles.read(path)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as name:
        folder = Path(name)
        bundle.extract(folder)
        loaded = LoadedBundle(bundle.manifest, folder)
        try:
            yield OpenBundle(bundle, folder, loaded)
        finally:
            loaded.close()


def verify(path: Path) -> SelfTestResult:
    """Run a bundle's self-test here. Raises: as `opened`, and DataError for unreadable golden data."""
    with opened(path) as here:
        return selftest.check(here.manifest, here.loaded, here.folder)


def evidence_of(bundle: Bundle) -> Statement | None:
    """The evidence that lies beside a bundle file, if any. Raises: BundleError if it is about another bundle."""
    path = evidence.beside(bundle.path)
    return evidence.decode(path.read_bytes(), sha256=bundle.sha256) if path.is_file() else None
