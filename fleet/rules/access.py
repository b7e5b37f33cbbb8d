"""Who may do what: the roles, and the one table that says what each route of the service asks for.

Pure.

Always true
 1. A route that is not in the table is closed to everybody.
 2. Each role may do all that the ones before it may: viewer < operator < publisher < admin.
 3. Access that is scoped to labels reaches devices that carry them, and nothing that concerns the whole fleet.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum

from edgekit.errors import AuthError, UsageError
from fleet.rules import selectors


class Role(IntEnum):
    """In the order of what they may do."""

    VIEWER = 1
    OPERATOR = 2
    PUBLISHER = 3
    ADMIN = 4

    @property
    def word(self) -> str:
        return self.name.lower()


def role(word: str) -> Role:
    """Raises: UsageError."""
    try:
        return Role[word.upper()]
    except KeyError as error:
        known = ", ".join(one.word for one in Role)
        raise UsageError(f"role {word[:40]!r}: there are {known}") from error


class Reach(StrEnum):
    """What a route is about, as far as scoped access is concerned."""

    # Devices: the endpoint shows and changes only those inside the scope.
    DEVICES = "devices"
    # What everybody sees alike, such as releases.
    SHARED = "shared"
    # The fleet as a whole: closed to scoped access.
    FLEET = "fleet"


@dataclass(frozen=True)
class Rule:
    """`is_form`: a form of the page is posted there, and the page's token is one of its fields (`fleet.server.web.forms`)."""

    needs: Role
    reach: Reach
    is_form: bool = False


@dataclass(frozen=True)
class Open:
    """No token and no session is asked for; `because` says what protects it instead."""

    because: str


_VIEW = Rule(Role.VIEWER, Reach.DEVICES)
_VIEW_SHARED = Rule(Role.VIEWER, Reach.SHARED)
_VIEW_FLEET = Rule(Role.VIEWER, Reach.FLEET)
_OPERATE = Rule(Role.OPERATOR, Reach.DEVICES)
_OPERATE_FLEET = Rule(Role.OPERATOR, Reach.FLEET)
_PUBLISH = Rule(Role.PUBLISHER, Reach.FLEET)
_ADMIN = Rule(Role.ADMIN, Reach.FLEET)
_OPERATE_FORM = replace(_OPERATE, is_form=True)
_OPERATE_FLEET_FORM = replace(_OPERATE_FLEET, is_form=True)
_ADMIN_FORM = replace(_ADMIN, is_form=True)
_DEVICE = Open("the device shows its own certificate, credential or enrolment token")
_PUBLIC = Open("public by its nature, and signed")

RULES: Mapping[tuple[str, str], Rule | Open] = {
    # Seeing.
    ("GET", "/api/v1/whoami"): _VIEW_SHARED,
    ("GET", "/api/v1/status"): _VIEW,
    ("GET", "/api/v1/keys"): _VIEW_SHARED,
    ("GET", "/api/v1/events"): _VIEW,
    ("GET", "/api/v1/devices"): _VIEW,
    ("GET", "/api/v1/devices/{device}/explain"): _VIEW,
    ("GET", "/api/v1/devices/{device}/commands"): _VIEW,
    ("GET", "/api/v1/devices/{device}/commands/{command}"): _VIEW,
    ("GET", "/api/v1/releases"): _VIEW_SHARED,
    ("GET", "/api/v1/bundles/{name}/{version}/{profile}"): _VIEW_SHARED,
    ("GET", "/api/v1/evidence/{sha256}"): _VIEW_SHARED,
    ("GET", "/api/v1/metadata"): _VIEW_SHARED,
    ("GET", "/api/v1/rollouts"): _VIEW,
    ("GET", "/api/v1/rollouts/{rollout_id}"): _VIEW,
    ("GET", "/api/v1/rollouts/{rollout_id}/members"): _VIEW,
    ("GET", "/api/v1/rollouts/{rollout_id}/wanted"): _VIEW,
    ("GET", "/api/v1/rollouts/{rollout_id}/history"): _VIEW,
    ("GET", "/api/v1/devices/{device}/history"): _VIEW,
    ("GET", "/api/v1/releases/{name}/{version}/history"): _VIEW_FLEET,
    ("GET", "/api/v1/alerts"): _VIEW_FLEET,
    ("GET", "/api/v1/drift"): _VIEW_FLEET,
    ("GET", "/metrics"): _VIEW_FLEET,
    # Devices and rollouts.
    ("POST", "/api/v1/devices"): _OPERATE,
    ("POST", "/api/v1/batches"): _OPERATE,
    ("GET", "/api/v1/batches"): _OPERATE_FLEET,
    ("POST", "/api/v1/batches/{batch}/revoke"): _OPERATE_FLEET,
    ("GET", "/api/v1/waiting"): _OPERATE,
    ("POST", "/api/v1/waiting/{device}/approve"): _OPERATE,
    ("POST", "/api/v1/waiting/{device}/reject"): _OPERATE,
    ("POST", "/api/v1/devices/{device}/deployments"): _OPERATE,
    ("POST", "/api/v1/devices/{device}/revoke"): _OPERATE,
    ("POST", "/api/v1/devices/{device}/decommission"): _OPERATE,
    ("POST", "/api/v1/devices/{device}/delete"): _OPERATE,
    ("POST", "/api/v1/devices/{device}/labels"): _OPERATE,
    ("POST", "/api/v1/devices/{device}/replace"): _OPERATE,
    ("POST", "/api/v1/devices/{device}/retry"): _OPERATE,
    ("POST", "/api/v1/devices/{device}/commands"): _OPERATE,
    ("GET", "/api/v1/assignments"): _VIEW_SHARED,
    ("POST", "/api/v1/assignments"): _OPERATE,
    ("POST", "/api/v1/assignments/{assignment}/remove"): _OPERATE_FLEET,
    ("POST", "/api/v1/rollouts"): _OPERATE,
    ("POST", "/api/v1/rollouts/{rollout_id}/retry"): _OPERATE,
    ("POST", "/api/v1/rollouts/{rollout_id}/{verb}"): _OPERATE,
    ("GET", "/api/v1/experiments"): _VIEW_FLEET,
    ("GET", "/api/v1/experiments/{experiment}"): _VIEW_FLEET,
    ("POST", "/api/v1/experiments"): _OPERATE_FLEET,
    ("POST", "/api/v1/experiments/{experiment}/stop"): _OPERATE_FLEET,
    ("POST", "/api/v1/experiments/{experiment}/adopt/{arm}"): _OPERATE_FLEET,
    ("GET", "/api/v1/shadows"): _VIEW_FLEET,
    ("GET", "/api/v1/shadows/{shadow}"): _VIEW_FLEET,
    ("POST", "/api/v1/shadows"): _OPERATE_FLEET,
    ("POST", "/api/v1/shadows/{shadow}/stop"): _OPERATE_FLEET,
    ("GET", "/api/v1/samples"): _VIEW,
    ("POST", "/api/v1/samples"): _OPERATE,
    # Inputs are people's: whoever may only look sees how many there are.
    ("GET", "/api/v1/samples/{collection}/items"): _OPERATE,
    ("GET", "/api/v1/samples/{collection}/files/{sha256}"): _OPERATE,
    ("POST", "/api/v1/samples/{collection}/stop"): _OPERATE,
    ("POST", "/api/v1/samples/{collection}/remove"): _OPERATE,
    ("POST", "/api/v1/freeze"): _OPERATE_FLEET,
    ("GET", "/api/v1/blocked"): _VIEW_SHARED,
    ("POST", "/api/v1/blocked"): _OPERATE_FLEET,
    ("POST", "/api/v1/blocked/{subject}/remove"): _OPERATE_FLEET,
    ("POST", "/api/v1/alerts/{alert}/acknowledge"): _OPERATE_FLEET,
    # Releases.
    ("PUT", "/api/v1/uploads/{sha256}"): _PUBLISH,
    ("GET", "/api/v1/files/{sha256}"): _PUBLISH,
    ("POST", "/api/v1/bundles"): _PUBLISH,
    ("POST", "/api/v1/bundles/{name}/{version}/{profile}/pick"): _PUBLISH,
    ("POST", "/api/v1/finalists"): _PUBLISH,
    ("POST", "/api/v1/finalists/{sha256}/remove"): _PUBLISH,
    ("POST", "/api/v1/metadata"): _PUBLISH,
    ("POST", "/api/v1/metadata/online-key"): _PUBLISH,
    ("POST", "/api/v1/metadata/order-key"): _PUBLISH,
    # Access itself, and what was done with it.
    ("GET", "/api/v1/tokens"): _ADMIN,
    ("POST", "/api/v1/tokens"): _ADMIN,
    ("POST", "/api/v1/tokens/{token}/revoke"): _ADMIN,
    ("GET", "/api/v1/users"): _ADMIN,
    ("POST", "/api/v1/users"): _ADMIN,
    ("POST", "/api/v1/users/{user}"): _ADMIN,
    ("POST", "/api/v1/users/{user}/remove"): _ADMIN,
    ("POST", "/api/v1/users/{user}/password"): _ADMIN,
    ("POST", "/api/v1/users/{user}/block"): _ADMIN,
    ("POST", "/api/v1/users/{user}/unblock"): _ADMIN,
    ("GET", "/api/v1/audit"): _ADMIN,
    ("GET", "/api/v1/audit/heads"): _ADMIN,
    ("GET", "/api/v1/audit/verdict"): _ADMIN,
    # Whom alerts are told.
    ("GET", "/api/v1/alert-targets"): _VIEW_FLEET,
    ("POST", "/api/v1/alert-targets"): _ADMIN,
    ("POST", "/api/v1/alert-targets/{target}/remove"): _ADMIN,
    ("POST", "/api/v1/alert-targets/{target}/test"): _ADMIN,
    # The page.
    ("GET", "/"): _VIEW,
    ("GET", "/search"): _VIEW,
    ("POST", "/theme"): replace(_VIEW_SHARED, is_form=True),
    ("GET", "/assets/{file}"): Open("the same for every fleet of this version"),
    ("GET", "/rollouts"): _VIEW,
    ("GET", "/rollouts/start"): _OPERATE,
    ("POST", "/rollouts/start"): _OPERATE_FORM,
    ("GET", "/rollouts/{rollout_id}"): _VIEW,
    ("GET", "/rollouts/{rollout_id}/{verb}"): _OPERATE,
    ("POST", "/rollouts/{rollout_id}/{verb}"): _OPERATE_FORM,
    ("GET", "/devices"): _VIEW,
    ("GET", "/devices/{device}"): _VIEW,
    ("GET", "/devices/{device}/{verb}"): _OPERATE,
    ("POST", "/devices/{device}/{verb}"): _OPERATE_FORM,
    ("POST", "/relabel"): _OPERATE_FORM,
    ("GET", "/enrol"): _OPERATE,
    ("POST", "/enrol"): _OPERATE_FORM,
    ("POST", "/enrol/waiting/{device}/{verb}"): _OPERATE_FORM,
    ("POST", "/enrol/batches/{batch}/revoke"): _OPERATE_FLEET_FORM,
    ("GET", "/releases"): _VIEW_SHARED,
    ("GET", "/releases/{name}/{version}"): _VIEW_SHARED,
    ("GET", "/releases/{name}/{version}/{verb}"): _OPERATE_FLEET,
    ("POST", "/releases/{name}/{version}/{verb}"): _OPERATE_FLEET_FORM,
    ("GET", "/drift"): _VIEW_FLEET,
    ("GET", "/experiments"): _VIEW_FLEET,
    ("POST", "/experiments"): _OPERATE_FLEET_FORM,
    ("GET", "/experiments/{experiment}"): _VIEW_FLEET,
    ("GET", "/experiments/{experiment}/{verb}"): _OPERATE_FLEET,
    ("POST", "/experiments/{experiment}/{verb}"): _OPERATE_FLEET_FORM,
    ("POST", "/alerts/{alert}/acknowledge"): _OPERATE_FLEET_FORM,
    ("GET", "/freeze"): _OPERATE_FLEET,
    ("POST", "/freeze"): _OPERATE_FLEET_FORM,
    ("GET", "/audit"): _ADMIN,
    ("GET", "/settings"): _VIEW_SHARED,
    ("GET", "/settings/{kind}/{name}/{verb}"): _ADMIN,
    ("POST", "/settings/{kind}/{name}/{verb}"): _ADMIN_FORM,
    ("POST", "/settings/{kind}"): _ADMIN_FORM,
    ("GET", "/login"): Open("only shows a form"),
    ("POST", "/login"): Open("name and password are asked for, and attempts limited"),
    ("POST", "/logout"): Open("ends only the session whose cookie and page token are shown"),
    ("GET", "/login/oidc"): Open("only sends a browser to the provider, and attempts are limited"),
    ("GET", "/login/oidc/callback"): Open("what the provider vouches for is proven, and attempts limited"),
    ("GET", "/login/terminal"): Open("asks for the page's session itself, and only shows a form"),
    ("POST", "/login/terminal"): Open("asks for the page's session and its token itself"),
    ("POST", "/api/v1/session/terminal"): Open(
        "a code that opens once, and its verifier; attempts are limited"
    ),
    ("POST", "/api/v1/session/end"): _VIEW_SHARED,
    # Devices, mirrors, and whoever asks what this is.
    ("POST", "/v1/enrol"): _DEVICE,
    ("POST", "/v1/renew"): _DEVICE,
    ("GET", "/artifacts/{sha256}"): _DEVICE,
    ("PUT", "/v1/samples/{sha256}"): _DEVICE,
    ("GET", "/v1/crl.pem"): _PUBLIC,
    ("GET", "/tuf/{file}"): _PUBLIC,
    ("GET", "/tuf/targets/_fleet/{file}"): _PUBLIC,
    ("GET", "/openapi.json"): Open("the same for every fleet of this version"),
}


@dataclass(frozen=True)
class Scope:
    """The devices that access reaches: those that a selector's text matches, or with empty text all."""

    text: str = ""

    def __post_init__(self) -> None:
        """Raises: UsageError for what is no selector."""
        if self.text:
            selectors.parse(self.text)

    @property
    def is_limited(self) -> bool:
        return bool(self.text)

    def covers(self, labels: selectors.Labels) -> bool:
        return not self.text or selectors.parse(self.text).matches(labels)

    def narrow(self, selector: str) -> str:
        """A selector's text, made to reach no further than this scope. Raises: UsageError if it is no selector."""
        if not self.text:
            return selector
        selectors.parse(selector)
        return f"({selector}) and ({self.text})"


def check(rule: Rule, holds: Role, scope: Scope) -> None:
    """Raises: AuthError if who holds this may not."""
    if holds < rule.needs:
        raise AuthError(f"this needs the role {rule.needs.word}; yours is {holds.word}")
    if rule.reach is Reach.FLEET and scope.is_limited:
        raise AuthError(f"this concerns the whole fleet; your access reaches only {scope.text}")
