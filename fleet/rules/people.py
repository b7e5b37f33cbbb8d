"""Who may sign in through an OpenID provider and as what: `[oidc]` of `fleet.toml`, and the rules over what it vouches for.

Pure.

Always true
 1. Whom no grant names may not sign in; a role is never combined with the scope of another role's grant.
 2. An e-mail address counts only where the provider says that it is verified.
 3. After signing in nobody is sent to another site.
"""

import hashlib
import re
from collections.abc import Mapping
from itertools import groupby
from typing import Any
from urllib.parse import urlsplit

import msgspec

from edgekit.errors import AuthError, UsageError
from edgekit.wire.enrolment import is_loopback
from fleet.rules.access import Role, Scope, role

Claims = Mapping[str, Any]
NAME = re.compile(r"^[a-z0-9][a-z0-9._@-]{0,47}$")
EMAIL = "email"
_MAX_SCOPE = 200
# A path of ours: no second slash or backslash, by which browsers go to another host, and nothing that they drop.
_LOCAL = re.compile(r"^/(?:[A-Za-z0-9._~?&=%+:@-][A-Za-z0-9._~/?&=%+:@-]{0,1000})?$")


class GroupGrant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[oidc.grants]]`: whoever is in `group` has `role`, for the devices that `scope` (a selector) matches."""

    group: str
    role: str
    scope: str = ""


class Oidc(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[oidc]`. The client's secret stands in its file or in the environment, never here.

    `groups_claim` is a claim's name, or a path into claims with dots; a claim that is a text counts as one group.
    """

    issuer: str
    client_id: str
    grants: tuple[GroupGrant, ...]
    client_secret_file: str = ""
    scopes: tuple[str, ...] = ("openid", "profile", "email")
    groups_claim: str = "groups"
    domains: tuple[str, ...] = ()
    label: str = "single sign-on"
    ca: str = ""

    def __post_init__(self) -> None:
        """Raises: ValueError, which whoever decodes turns into its own error with the place."""
        if not is_safe_url(self.issuer) or len(self.issuer) > 200:
            raise ValueError(f"issuer {self.issuer!r}: write https://HOST/…, as the provider calls itself")
        if not self.client_id or "openid" not in self.scopes:
            raise ValueError("client_id is empty, or scopes lack 'openid'")
        if not self.grants:
            raise ValueError("grants are missing: without one nobody may sign in")
        try:
            for grant in self.grants:
                role(grant.role)
                Scope(grant.scope)
        except UsageError as error:
            raise ValueError(str(error)) from error
        for one, of_role in groupby(sorted(self.grants, key=_by_role), key=_by_role):
            if len(_union(tuple(of_role))) > _MAX_SCOPE:
                raise ValueError(f"the scopes of all grants of {one} are longer than {_MAX_SCOPE} characters")


class Person(msgspec.Struct, frozen=True):
    """Somebody whom the provider vouches for. `subject` is who it is, for good; `name` is only what they are called."""

    subject: str
    name: str
    groups: tuple[str, ...]


def is_safe_url(text: Any, beside: str = "") -> bool:
    """https; plain http only on this machine, and for an endpoint only where the issuer `beside` it is so too."""
    try:
        url = urlsplit(text) if isinstance(text, str) else urlsplit("")
        host = url.hostname or ""
        _ = url.port
    except ValueError:
        return False
    is_plain_allowed = is_loopback(host) and (not beside or beside.startswith("http:"))
    is_right = url.scheme == "https" or (url.scheme == "http" and is_plain_allowed)
    return is_right and bool(host) and not url.username and not url.fragment


def local(path: str) -> str:
    """Where to go after signing in: a path of this site, or its front page for anything else."""
    return path if _LOCAL.match(path) else "/"


def person(claims: Claims, oidc: Oidc) -> Person:
    """Raises: AuthError if the address is not one of the allowed domains."""
    subject = claims["sub"]
    email = _verified_email(claims)
    if oidc.domains and email.rpartition("@")[2] not in {domain.lower() for domain in oidc.domains}:
        raise AuthError(
            "only people with a verified e-mail address of this fleet's organisation may sign in; ask an admin of the "
            "fleet to add the domain to 'domains' in fleet.toml, or sign in with another account"
        )
    full = f"{oidc.issuer} {subject}"
    candidates = (email, str(claims.get("preferred_username", "")).lower())
    fallback = f"oidc-{hashlib.sha256(full.encode()).hexdigest()[:12]}"
    name = next((one for one in candidates if NAME.match(one)), fallback)
    return Person(full, name, groups(claims, oidc.groups_claim))


def groups(claims: Claims, path: str) -> tuple[str, ...]:
    """The values of the claim that says who somebody is here; empty if there is none, or none that counts."""
    if path == EMAIL:
        email = _verified_email(claims)
        return (email,) if email else ()
    found: Any = claims.get(path)
    if found is None:
        found = claims
        for part in path.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
    if isinstance(found, str):
        return (found,)
    return tuple(one for one in found if isinstance(one, str)) if isinstance(found, list) else ()


def are_groups_left_out(claims: Claims, path: str) -> bool:
    """Whether the provider left them out for being too many ("distributed claims", OpenID Connect Core 5.6.2)."""
    elsewhere = claims.get("_claim_names")
    return isinstance(elsewhere, Mapping) and path in elsewhere


def access(groups: tuple[str, ...], oidc: Oidc) -> tuple[Role, Scope] | None:
    """The highest role that a group grants, for the devices that the grants of this role reach; None if there is none."""
    fitting = [grant for grant in oidc.grants if grant.group in groups]
    if not fitting:
        return None
    highest = max(role(grant.role) for grant in fitting)
    return highest, Scope(_union(tuple(grant for grant in fitting if role(grant.role) is highest)))


def _union(grants: tuple[GroupGrant, ...]) -> str:
    scopes = list(dict.fromkeys(grant.scope for grant in grants))
    if "" in scopes:
        return ""
    return scopes[0] if len(scopes) == 1 else " or ".join(f"({scope})" for scope in scopes)


def _by_role(grant: GroupGrant) -> str:
    return grant.role


def _verified_email(claims: Claims) -> str:
    """In lower case; empty if the provider does not vouch for it."""
    email = claims.get(EMAIL)
    is_verified = claims.get("email_verified") in (True, "true")
    return email.lower() if is_verified and isinstance(email, str) and "@" in email[1:] else ""
