"""What the supervisor asks the updates' child, and what that answers: JSON over its standard input and output."""

from datetime import datetime

import msgspec

from edgekit.manifest import Sha256
from edgekit.trust.orderkeys import OrderKeys
from edgekit.wire.messages import Passed


class Question(msgspec.Struct, frozen=True):
    """`known` is the time where this device knows it, for servers' certificates; metadata are judged by `now`.

    `root` is the enrolment's root.json as text, `paths` are targets to look up.
    """

    folder: str
    root: str
    metadata_url: str
    allowed_hosts: tuple[str, ...]
    ca: str
    now: datetime
    known: datetime | None
    paths: tuple[str, ...] = ()


class Listed(msgspec.Struct, frozen=True):
    """What the publisher signed of one target; of a delta also from which bundle it leads, and how."""

    length: int
    sha256: Sha256
    base: str = ""
    method: str = ""


class Answer(msgspec.Struct, frozen=True):
    """`listed` has those of the paths that are targets; `trouble` is why nothing can be said, empty otherwise.

    `passed` is what it took of the network. `order_keys` are those that the publisher lists now; None where none ever were listed: the enrolment's count.
    """

    listed: dict[str, Listed] = {}
    order_keys: OrderKeys | None = None
    trouble: str = ""
    passed: Passed = Passed(0, 0)
