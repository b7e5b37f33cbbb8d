"""Bodies about people, tokens and the audit log."""

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta

from fleet.api.common import MaybeDuration, Password, RoleName

# Neither a colon, which the audit log puts before it, nor capitals: no two names that look alike.
AccessName = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._@-]{0,47}$")]
ScopeText = Annotated[str, Meta(max_length=200, extra_json_schema={"format": "edgekit-scope"})]


class Whoami(msgspec.Struct, frozen=True):
    """`GET /whoami`: `name` is `token:NAME` or `user:NAME`; an empty `scope` is the whole fleet."""

    name: str
    role: str
    scope: str


class NewToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /tokens`. Without `expires` (a duration) it holds until it is revoked."""

    name: AccessName
    role: RoleName
    scope: ScopeText = ""
    expires: MaybeDuration = ""


class MadeToken(msgspec.Struct, frozen=True):
    """The one answer that holds the secret, and what a client needs besides."""

    name: str
    secret: str
    url: str
    ca: str

    def __repr__(self) -> str:
        return f"MadeToken({self.name!r})"


class TokenView(msgspec.Struct, frozen=True):
    """`state` is good, expired or revoked."""

    name: str
    role: str
    scope: str
    state: str
    created: datetime
    created_by: str
    expires: datetime | None
    last_used: datetime | None
    last_used_from: str


class NewUser(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /users`. Without `expires` (a duration) they stay until they are removed."""

    name: AccessName
    password: Password
    role: RoleName
    scope: ScopeText = ""
    expires: MaybeDuration = ""

    def __repr__(self) -> str:
        return f"NewUser({self.name!r})"


class UserChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /users/NAME`: what is None stays as it is. `expires` is a duration from now on; empty is no end."""

    role: RoleName | None = None
    scope: ScopeText | None = None
    expires: MaybeDuration | None = None


class NewPassword(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`POST /users/NAME/password`."""

    password: Password

    def __repr__(self) -> str:
        return "NewPassword()"


class UserView(msgspec.Struct, frozen=True):
    """`kind` is password or oidc, `state` good or blocked; `subject` is the issuer and who they are to it.

    `tag` stands for role, scope, state and end, which a person decides about.
    """

    name: str
    role: str
    scope: str
    created: datetime
    created_by: str
    expires: datetime | None
    last_used: datetime | None
    last_used_from: str
    kind: str
    state: str
    subject: str
    tag: str = ""


class AuditVerdict(msgspec.Struct, frozen=True):
    """`GET /audit/verdict`: `newest` and `covered` are ids of entries; `problems` is empty if the log is whole."""

    entries: int
    newest: int
    covered: int
    heads: int
    problems: tuple[str, ...]
