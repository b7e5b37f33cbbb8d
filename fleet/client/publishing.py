"""Publishing: check, upload, sign here. Keys never leave this machine.

Which bundles are alternates their evidence says: a build that could not measure the board keeps several.

Always true
 1. Every bundle is checked, and every conflict found, before the first byte is sent.
 2. What is signed is what was checked: name, version, profile, length and digest of the whole file.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgekit import bundle as bundles
from edgekit import evidence
from edgekit.bundle import Bundle
from edgekit.errors import ConflictError, NotFoundError, UsageError
from edgekit.trust.target import DeltaTarget
from fleet import api
from fleet.client.config import Access
from fleet.client.rest import Client


@dataclass(frozen=True)
class Checked:
    """A bundle ready to go; `statement` is the evidence beside it, if there is any."""

    bundle: Bundle
    statement: str | None
    was_there: bool
    is_alternate: bool = False


def custody_of(access: Access, given: Path | None) -> Path:
    """The publisher's folder: the given one, or that of a fleet on this machine. Raises: UsageError."""
    folder = given or (access.folder / "publisher" if access.folder is not None else None)
    if folder is None or not folder.is_dir():
        raise UsageError("where are the publisher's keys? give --keys DIR, the folder of 'edgekit keys init'")
    return folder


def bundle_files(paths: Iterable[Path]) -> list[Path]:
    """The files themselves, and of a build's output folder its bundles and their alternates.

    Raises: UsageError for a folder without bundles.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = [*sorted(path.glob("*.edgekit")), *sorted(path.glob("alternates/*/*.edgekit"))]
            if not inside:
                raise UsageError(f"{path}: there is no bundle in this folder")
            found += inside
        else:
            found.append(path)
    return found


def check(client: Client, paths: Sequence[Path]) -> list[Checked]:
    """What can be published, alternates after the picked bundles that they need.

    Raises: BundleError, ManifestError, ConflictError, UsageError; nothing has been sent then.
    """
    checked = sorted((_check_one(client, path) for path in paths), key=lambda found: found.is_alternate)
    titles = [found.bundle.manifest.title for found in checked if not found.is_alternate]
    twice = {title for title in titles if titles.count(title) > 1}
    if twice:
        raise UsageError(f"two of the files are {', '.join(sorted(twice))}; publish one of them")
    return checked


def _check_one(client: Client, path: Path) -> Checked:
    bundle = bundles.read(path)
    manifest = bundle.manifest
    beside = evidence.beside(path)
    statement = None
    if beside.is_file():
        data = beside.read_bytes()
        told = evidence.decode(data, sha256=bundle.sha256).predicate
        statement = data.decode()
        if any(item.recipe == told.recipe and item.status == "alternate" for item in told.candidates):
            return Checked(bundle, statement, _is_there(client, bundle.sha256), is_alternate=True)
    try:
        there = client.bundle(manifest.name, manifest.version, manifest.profile)
    except NotFoundError:
        return Checked(bundle, statement, was_there=False)
    if there.sha256 != bundle.sha256:
        raise ConflictError(
            f"{manifest.title} is published already with sha256 {there.sha256[:12]}…, {path.name} has "
            f"{bundle.sha256[:12]}…; a version never changes: build it under a new version"
        )
    return Checked(bundle, statement, was_there=True)


def _is_there(client: Client, sha256: str) -> bool:
    return any(known.sha256 == sha256 for release in client.releases() for known in release.alternates)


class Published(msgspec.Struct, frozen=True):
    """What became of a bundle; `deltas` were made now, each from one that the fleet had."""

    bundle: api.BundleView
    was_there: bool
    deltas: tuple[DeltaTarget, ...] = ()


def publish(
    client: Client, checked: Checked, keys: Path, progress: Callable[[int], None], *, deltas: int = 0
) -> Published:
    """Upload, list and register one checked bundle, with the keys in the publisher's folder.

    At most `deltas` deltas are made, from the newest releases before it; no device is ordered to run an alternate, so
    there are none to those. Raises: UsageError for the keys; what the service refuses.
    """
    # cryptography and tuf belong to signing only; the other commands do without them.
    from fleet.client import keys as custody
    from fleet.client import shortcuts
    from fleet.publish import target_of
    from fleet.tuf.home import Home
    from fleet.tuf.ring import Ring, passphrase

    if not checked.was_there:
        client.upload(checked.bundle.path, checked.bundle.sha256, progress)
    home, target = Home(Ring(keys, passphrase(None))), target_of(checked.bundle)
    custody.refresh(client, home)
    made = []
    if deltas > 0 and not checked.is_alternate:
        for one, data in shortcuts.made(
            client, target, checked.bundle.path, home.listed(target.name), deltas
        ):
            client.upload_bytes(data, one.sha256)
            made.append(one)
    custody.publish(client, home, target, made)
    answer = client.register(
        api.NewBundle(checked.bundle.sha256, checked.statement, checked.is_alternate), target.length
    )
    return Published(answer.bundle, answer.was_there, tuple(made))
