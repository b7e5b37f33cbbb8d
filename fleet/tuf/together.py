"""A publisher's folder inside a fleet's home: how every fleet begins that does not say `--no-publisher`.

Whoever has that machine can then sign anything, if there is no passphrase. For a fleet that others can reach the folder
is moved to the publisher's own machine, or made there in the first place (`edgekit keys init`).
"""

from datetime import datetime
from pathlib import Path

from fleet.tuf import documents
from fleet.tuf.home import Home
from fleet.tuf.online import Online
from fleet.tuf.ring import Ring

FOLDER = "publisher"


def home(state: Path, passphrase: bytes = b"") -> Home:
    """The publisher's folder inside a state folder."""
    return Home(Ring(state / FOLDER, lambda: passphrase))


def start(state: Path, online: Online, now: datetime, passphrase: bytes = b"") -> bool:
    """Make a root where there is none yet; whether that was so. Raises: OSError, EdgeKitError."""
    if online.root():
        return False
    publisher = home(state, passphrase)
    if not publisher.exists:
        publisher.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        publisher.init(online.key, now)
    whole = publisher.documents()
    online.offer(
        tuple(documents.encode(one) for one in whole.roots),
        {role: documents.encode(one) for role, one in whole.roles.items()},
        now,
    )
    return True
