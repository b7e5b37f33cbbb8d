"""What `GET /events` says: server-sent events, each with a `Change` as its data."""

from typing import Literal, get_args

import msgspec

# More than these are not named: whoever watches looks at all of that kind.
MOST_IDS = 50
EventKind = Literal["rollout", "device", "release", "alert", "experiment", "fleet"]
KINDS: tuple[EventKind, ...] = get_args(EventKind)


class Change(msgspec.Struct, frozen=True):
    """These have changed; with no `ids`, any of that kind. What they are now is for you to ask."""

    kind: EventKind
    ids: tuple[str, ...] = ()
