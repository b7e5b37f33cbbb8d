"""What of the home runs out: certificates that are files, and signed metadata."""

import contextlib
import logging
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from edgekit.errors import EdgeKitError
from fleet.rules.findings import Expiry
from fleet.tuf import documents
from fleet.tuf.documents import ROOT, TARGETS, TIMESTAMP
from fleet.tuf.online import Online

log = logging.getLogger(__name__)

_DAY = 86_400.0
# The authority's end is every device's.
_AUTHORITY_S = 180 * _DAY
# Those are renewed by the service with a third of a year left: less means that it does not succeed.
_OWN_S = 21 * _DAY


def of_files(authority: Path, own: Iterable[Path], given: Path | None) -> list[Expiry]:
    """The authority's certificate, those that the service renews itself, and the one that a user gave for the API."""
    found = _file(
        authority,
        "the fleet's certificate authority",
        _AUTHORITY_S,
        "every device pins it (docs/identity.md)",
    )
    for path in own:
        found += _file(
            path,
            f"the service's certificate {path.name}",
            _OWN_S,
            "it was to be renewed: see the service's log",
        )
    if given is not None:
        found += _file(
            given, f"the certificate {given.name} of the API", _OWN_S, "put a new one in its place"
        )
    return found


def _file(path: Path, subject: str, warn_s: float, words: str) -> list[Expiry]:
    with contextlib.suppress(OSError, ValueError):
        ends = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
        return [Expiry(subject, ends.timestamp(), warn_s, words)]
    return []


def of_metadata(online: Online) -> list[Expiry]:
    """What publishers signed, and the timestamp, which the service signs itself."""
    try:
        whole = online.documents()
        if whole is None:
            return []
        ends = {role: whole.document(role).signed.expires for role in (ROOT, TARGETS, *whole.delegated)}
        stamp = (online.metadata / f"{TIMESTAMP}.json").read_bytes()
        timestamp = documents.parse(stamp, TIMESTAMP).signed.expires
    except (OSError, EdgeKitError) as error:
        log.warning("the end of the signed metadata cannot be read: %s", error)
        return []
    remind_s = documents.REMIND.total_seconds()
    words = "the publisher signs it: edgekit keys sign"
    found = [
        Expiry(f"signed metadata {role}", _at(when), remind_s, words) for role, when in sorted(ends.items())
    ]
    quarter_s = documents.TIMESTAMP_LIFE.total_seconds() / 4
    return [
        *found,
        Expiry(
            "signed metadata timestamp",
            _at(timestamp),
            quarter_s,
            "the service could not sign it: see its log",
        ),
    ]


def _at(when: datetime) -> float:
    return when.replace(tzinfo=when.tzinfo or UTC).timestamp()
