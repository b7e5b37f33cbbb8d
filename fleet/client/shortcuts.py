"""Deltas at the publisher: from which releases, made from what the fleet has of them.

Always true
 1. A delta is made from bundles only that the publisher himself listed, and that arrive here with their digest.
 2. One that is listed already is not made again: its file never changes.
"""

import hashlib
import zipfile
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

from edgekit.errors import FleetError
from edgekit.trust.target import DeltaTarget, Target
from fleet import api
from fleet.client.rest import Client

# Both files, and what is made of them, are in memory.
MAX_BYTES = 1 << 30


def made(
    client: Client, target: Target, path: Path, listed: Container[str], count: int
) -> Iterator[tuple[DeltaTarget, bytes]]:
    """The deltas to `target`, whose file is at `path`, that are worth having and not there yet, with their bytes."""
    # numpy and bsdiff4 belong to this alone.
    from fleet import deltas

    new = b""
    for base in bases(client.releases(), target, listed, count):
        if DeltaTarget(target, base.sha256, 1, base.sha256).path in listed:
            continue
        try:
            old = client.file(base.sha256, base.length)
        except FleetError:
            # The fleet lost its file, or has another: there is nothing to begin from.
            continue
        new = new or path.read_bytes()
        try:
            data = deltas.make(old, new)
        except zipfile.BadZipFile:
            continue
        if data is not None:
            yield DeltaTarget(target, base.sha256, len(data), hashlib.sha256(data).hexdigest()), data


def bases(
    releases: Sequence[api.ReleaseView], target: Target, listed: Container[str], count: int
) -> list[api.BundleView]:
    """The bundles of the `count` newest other releases for the same profile, the newest first."""
    found = [
        bundle
        for release in releases
        for bundle in release.bundles
        if (bundle.name, bundle.profile) == (target.name, target.profile)
        and bundle.sha256 != target.sha256
        and bundle.length <= MAX_BYTES >= target.length
        and Target(bundle.name, bundle.version, bundle.profile, bundle.length, bundle.sha256).path in listed
    ]
    return sorted(found, key=lambda bundle: bundle.published, reverse=True)[:count]
