"""An entry of the audit log, as the service stores and shows it and as exports hold it; its rules are `fleet.audit`'s."""

import msgspec


class Entry(msgspec.Struct, frozen=True):
    """One change: who did what to what, from where and when (unix seconds), and what it was before and after."""

    id: int
    at: float
    actor: str
    action: str
    subject: str
    detail: str
    before: str
    after: str
    origin: str
    previous: str
    hash: str
