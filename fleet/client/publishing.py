"""Publishing: check, sign here, upload. The key never leaves this machine.

Always true
 1. Every bundle is checked, and every conflict found, before the first byte is sent.
 2. What is signed is what was checked: name, version, profile, length and digest of the whole file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit import bundle as bundles
from edgekit import evidence
from edgekit.bundle import Bundle
from edgekit.errors import ConflictError, NotFoundError, UsageError
from fleet import api
from fleet.client.rest import Client


@dataclass(frozen=True)
class Checked:
    """A bundle ready to go; `statement` is the evidence beside it, if there is any."""

    bundle: Bundle
    statement: str | None
    was_there: bool


def check(client: Client, paths: Sequence[Path]) -> list[Checked]:
    """Raises: BundleError, ManifestError, ConflictError, UsageError; nothing has been sent then."""
    checked = [_check_one(client, path) for path in paths]
    titles = [found.bundle.manifest.title for found in checked]
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
        evidence.decode(data, sha256=bundle.sha256)
        statement = data.decode()
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


def publish(
    client: Client, checked: Checked, key: Path, progress: Callable[[int], None]
) -> api.PublishAnswer:
    """Sign, upload and register one checked bundle. Raises: UsageError for the key; what the service refuses."""
    # cryptography belongs to signing only; the other commands do without it.
    from fleet.publish import load_key, sign_target, target_of

    envelope = sign_target(target_of(checked.bundle), load_key(key)).decode()
    if not checked.was_there:
        client.upload(checked.bundle.path, checked.bundle.sha256, progress)
    return client.register(api.NewBundle(envelope, checked.statement))
