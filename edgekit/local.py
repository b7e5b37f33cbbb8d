"""A bundle opened on this machine: checked, extracted to a temporary folder and loaded, for the `edgekit` command.

Nothing stays behind: the folder goes when the block ends, whatever ended it.
"""

import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgekit import bundle as bundles
from edgekit import detect, evidence, profile, selftest
from edgekit.bundle import Bundle
from edgekit.engines import LoadedBundle
from edgekit.errors import ProfileError
from edgekit.evidence import Statement
from edgekit.manifest import Manifest
from edgekit.quiet import hushed
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
        # LiteRT announces on standard error what it loads, and what it takes down.
        with hushed():
            loaded = LoadedBundle(bundle.manifest, folder)
        try:
            yield OpenBundle(bundle, folder, loaded)
        finally:
            with hushed():
                loaded.close()


def verify(path: Path) -> SelfTestResult:
    """Run a bundle's self-test here. Raises: as `opened`, and DataError for unreadable golden data."""
    with opened(path) as here:
        return selftest.check(here.manifest, here.loaded, here.folder)


def foreign(manifest: Manifest) -> str:
    """In what this machine is another kind than the one a bundle was built for; empty if in nothing that is known."""
    try:
        built_for = profile.load(manifest.profile)
    except ProfileError:
        return f"built for {manifest.profile}, a profile that is not known here; whether this machine is one cannot be told"
    here, own = platform.machine(), set(detect.isa())
    lacking = [name for name in built_for.isa if name not in own]
    if built_for.arch == here and not lacking and built_for.accelerator is None:
        return ""
    needs = [*built_for.isa, *(["an accelerator"] if built_for.accelerator is not None else [])]
    lacks = f" without {', '.join(lacking)}" if built_for.arch == here and lacking else ""
    return (
        f"built for {built_for.name} ({', '.join([built_for.arch, *needs])}); this is {here}{lacks}:"
        " outputs were compared, its times say nothing about the board"
    )


def evidence_of(bundle: Bundle) -> Statement | None:
    """The evidence that lies beside a bundle file, if any. Raises: BundleError if it is about another bundle."""
    path = evidence.beside(bundle.path)
    return evidence.decode(path.read_bytes(), sha256=bundle.sha256) if path.is_file() else None
