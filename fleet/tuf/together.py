"""One machine that is publisher and fleet at once: a demo, a lab on loopback.

The offline keys then lie in the fleet's own folder, without a passphrase, so whoever has that machine can sign
anything. For a fleet that others can reach, `edgekit keys init` makes them on the publisher's machine instead.
"""

from datetime import datetime
from pathlib import Path

from fleet.tuf import documents
from fleet.tuf.home import Home
from fleet.tuf.online import Online
from fleet.tuf.ring import Ring

FOLDER = "publisher"


def home(state: Path) -> Home:
    """The publisher's folder inside a state folder."""
    return Home(Ring(state / FOLDER, lambda: b""))


def start(state: Path, online: Online, now: datetime) -> bool:
    """Make a root where there is none yet; whether that was so. Raises: OSError, EdgeKitError."""
    if online.root():
        return False
    publisher = home(state)
    if not publisher.exists:
        publisher.init(online.key, now)
    whole = publisher.documents()
    online.offer(
        tuple(documents.encode(one) for one in whole.roots),
        {role: documents.encode(one) for role, one in whole.roles.items()},
        now,
    )
    return True
