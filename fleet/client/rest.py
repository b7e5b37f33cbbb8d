"""The REST client: one method per thing a person does. Errors of the service come back as the same classes."""

import hashlib
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import httpx
import msgspec

from edgekit import errors, safe
from edgekit.errors import EdgeKitError, FleetError, UsageError
from edgekit.wire.enrolment import EnrolmentFile
from fleet import api
from fleet.api.history import ArmPoint
from fleet.audit_entry import Entry
from fleet.client.config import Access
from fleet.terminal import MadeTerminal, NewTerminal

T = TypeVar("T")
CHUNK_BYTES = 1 << 20
_PAGE = 500
_TIMEOUT = httpx.Timeout(30.0, connect=5.0)
# The service's error classes by their `code`, so that a command ends with the right exit code.
_BY_CODE = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, EdgeKitError) and "code" in vars(kind)
}


class AwayError(FleetError):
    """The service did not answer; it may the next time."""


def part(name: str) -> str:
    """A name as one part of a path, whatever is in it. Raises: UsageError if there is none."""
    if not name:
        raise UsageError("a name is empty; which one is meant?")
    # A dot alone would be taken for a step in the path.
    return (
        name.replace(".", "%2E") if name in (".", "..") else quote(name, safe="@", errors="surrogateescape")
    )


class Client:
    """Talks to one fleet service."""

    def __init__(self, access: Access, timeout: httpx.Timeout = _TIMEOUT) -> None:
        self._access = access
        self._http = httpx.Client(
            base_url=f"{access.url}/api/v1",
            headers={"Authorization": f"Bearer {access.token}"} if access.token else {},
            timeout=timeout,
            # The service is where the file says; a proxy set for the web has no part in it.
            trust_env=False,
            verify=_pinned(access) if access.ca else True,
        )

    def close(self) -> None:
        self._http.close()

    def status(self) -> api.FleetView:
        return self._call("GET", "/status", api.FleetView)

    def keys(self) -> api.KeysView:
        return self._call("GET", "/keys", api.KeysView)

    def metadata(self) -> api.MetadataView:
        return self._call("GET", "/metadata", api.MetadataView)

    def offer(self, new: api.NewMetadata) -> api.MetadataView:
        return self._call("POST", "/metadata", api.MetadataView, new)

    def next_online_key(self) -> api.PublicKey:
        return self._call("POST", "/metadata/online-key", api.PublicKey)

    def next_order_key(self) -> api.OrderKey:
        return self._call("POST", "/metadata/order-key", api.OrderKey)

    def freeze(self, *, is_frozen: bool, reason: str) -> api.FleetView:
        return self._call("POST", "/freeze", api.FleetView, api.Freeze(is_frozen, reason))

    def enroll(self, device: api.NewDevice) -> EnrolmentFile:
        return self._call("POST", "/devices", EnrolmentFile, device)

    def batch(self, wanted: api.NewBatch) -> EnrolmentFile:
        return self._call("POST", "/batches", EnrolmentFile, wanted)

    def batches(self) -> list[api.BatchView]:
        return self._call("GET", "/batches", list[api.BatchView])

    def revoke_batch(self, batch: str) -> api.Done:
        return self._call("POST", f"/batches/{part(batch)}/revoke", api.Done)

    def waiting(self) -> list[api.Waiting]:
        return self._call("GET", "/waiting", list[api.Waiting])

    def decide(self, device: str, *, is_approved: bool) -> api.Done:
        return self._call(
            "POST", f"/waiting/{part(device)}/{'approve' if is_approved else 'reject'}", api.Done
        )

    def revoke(self, device: str, reason: str) -> api.Done:
        return self._call("POST", f"/devices/{part(device)}/revoke", api.Done, api.Reason(reason))

    def decommission(self, device: str, reason: str) -> api.Done:
        return self._call("POST", f"/devices/{part(device)}/decommission", api.Done, api.Reason(reason))

    def delete(self, device: str, reason: str) -> api.Done:
        return self._call("POST", f"/devices/{part(device)}/delete", api.Done, api.Reason(reason))

    def label(self, device: str, labels: api.NewLabels) -> api.Done:
        return self._call("POST", f"/devices/{part(device)}/labels", api.Done, labels)

    def replace(self, device: str, wanted: api.Replacement) -> EnrolmentFile:
        return self._call("POST", f"/devices/{part(device)}/replace", EnrolmentFile, wanted)

    def retry_device(self, device: str) -> api.Retried:
        return self._call("POST", f"/devices/{part(device)}/retry", api.Retried)

    def retry(self, rollout_id: str, devices: tuple[str, ...] = ()) -> api.Retried:
        return self._call("POST", f"/rollouts/{part(rollout_id)}/retry", api.Retried, api.Retry(devices))

    def assignments(self) -> list[api.AssignmentView]:
        return self._call("GET", "/assignments", list[api.AssignmentView])

    def assign(self, wanted: api.NewAssignment) -> api.Assigned:
        return self._call("POST", "/assignments", api.Assigned, wanted)

    def unassign(self, assignment: str, reason: str) -> api.Changed:
        return self._call("POST", f"/assignments/{part(assignment)}/remove", api.Changed, api.Reason(reason))

    def add_deployment(self, device: str, deployment: str) -> api.Done:
        return self._call(
            "POST", f"/devices/{part(device)}/deployments", api.Done, api.NewDeployment(deployment)
        )

    def devices(self, where: str = "", sort: str = "") -> list[api.DeviceView]:
        """All that a filter finds, in this order."""
        return list(self.find(where, sort))

    def find(self, where: str = "", sort: str = "", *, page: int = _PAGE) -> Iterator[api.DeviceView]:
        """The same one by one; a page is asked for when the one before is used up."""
        given = {"where": where, "sort": sort, "limit": str(page)}
        path = "/devices?" + urlencode({name: value for name, value in given.items() if value})
        while path:
            response = self._send("GET", path, None)
            yield from self._read(response, "GET", path, list[api.DeviceView])
            path = response.links.get("next", {}).get("url", "").removeprefix("/api/v1")

    def count(self, where: str = "") -> int:
        """How many devices a filter finds."""
        query = urlencode({"where": where, "limit": 1, "count": "true"})
        return int(self._send("GET", f"/devices?{query}", None).headers.get("X-Total-Count", "0"))

    def names_after(self, name: str, most: int) -> list[str]:
        """Of devices that come after this name, by name."""
        path = f"/devices?{urlencode({'after': name, 'limit': most})}"
        return [one.device for one in self._call("GET", path, list[api.DeviceView])]

    def explain(self, device: str) -> api.Explanation:
        return self._call("GET", f"/devices/{part(device)}/explain", api.Explanation)

    def releases(self) -> list[api.ReleaseView]:
        return self._call("GET", "/releases", list[api.ReleaseView])

    def bundle(self, name: str, version: str, profile: str) -> api.BundleView:
        """Raises: NotFoundError if it is not published."""
        return self._call("GET", f"/bundles/{part(name)}/{part(version)}/{part(profile)}", api.BundleView)

    def upload(self, path: Path, sha256: str, progress: Callable[[int], None]) -> None:
        """Send a bundle file; `progress` gets the number of bytes of each piece."""

        def pieces() -> Iterator[bytes]:
            with path.open("rb") as stream:
                while piece := stream.read(CHUNK_BYTES):
                    yield piece
                    progress(len(piece))

        self._send("PUT", f"/uploads/{part(sha256)}", content=pieces())

    def upload_bytes(self, data: bytes, sha256: str) -> None:
        self._send("PUT", f"/uploads/{part(sha256)}", content=data)

    def file(self, sha256: str, length: int) -> bytes:
        """A published bundle's file. Raises: FleetError if it is not just that."""
        data = self._send("GET", f"/files/{part(sha256)}", content=None).content
        if len(data) != length or hashlib.sha256(data).hexdigest() != sha256:
            raise FleetError(f"the fleet sent another file than {sha256[:12]}…")
        return data

    def register(self, bundle: api.NewBundle) -> api.PublishAnswer:
        return self._call("POST", "/bundles", api.PublishAnswer, bundle)

    def blocked(self) -> list[api.BlockedView]:
        return self._call("GET", "/blocked", list[api.BlockedView])

    def block(self, subject: str, reason: str) -> api.BlockAnswer:
        return self._call("POST", "/blocked", api.BlockAnswer, api.Block(subject, reason))

    def unblock(self, subject: str, reason: str) -> api.BlockAnswer:
        return self._call("POST", f"/blocked/{part(subject)}/remove", api.BlockAnswer, api.Reason(reason))

    def start(self, rollout: api.NewRollout) -> api.RolloutAnswer:
        return self._call("POST", "/rollouts", api.RolloutAnswer, rollout)

    def rollouts(self) -> list[api.RolloutView]:
        return self._call("GET", "/rollouts", list[api.RolloutView])

    def rollout(self, rollout_id: str) -> api.RolloutView:
        return self._call("GET", f"/rollouts/{part(rollout_id)}", api.RolloutView)

    def wanted(self, rollout_id: str) -> api.NewRollout:
        """What a rollout was started with."""
        return self._call("GET", f"/rollouts/{part(rollout_id)}/wanted", api.NewRollout)

    def rollout_history(self, rollout_id: str) -> list[ArmPoint]:
        """Canary and control of its stages over time. Raises: FleetError where the service keeps none."""
        return self._call("GET", f"/rollouts/{part(rollout_id)}/history", list[ArmPoint])

    def turn(self, rollout_id: str, verb: str, how: api.Turn | None = None) -> api.RolloutView:
        return self._call("POST", f"/rollouts/{part(rollout_id)}/{part(verb)}", api.RolloutView, how)

    def start_experiment(self, experiment: api.NewExperiment) -> api.ExperimentView:
        return self._call("POST", "/experiments", api.ExperimentView, experiment)

    def experiments(self) -> list[api.ExperimentView]:
        return self._call("GET", "/experiments", list[api.ExperimentView])

    def experiment(self, experiment: str) -> api.ExperimentView:
        return self._call("GET", f"/experiments/{part(experiment)}", api.ExperimentView)

    def end_experiment(self, experiment: str, adopt: str = "") -> api.ExperimentView:
        how = f"adopt/{part(adopt)}" if adopt else "stop"
        return self._call("POST", f"/experiments/{part(experiment)}/{how}", api.ExperimentView)

    def whoami(self) -> api.Whoami:
        return self._call("GET", "/whoami", api.Whoami)

    def tokens(self) -> list[api.TokenView]:
        return self._call("GET", "/tokens", list[api.TokenView])

    def add_token(self, new: api.NewToken) -> api.MadeToken:
        return self._call("POST", "/tokens", api.MadeToken, new)

    def revoke_token(self, name: str) -> api.Changed:
        return self._call("POST", f"/tokens/{part(name)}/revoke", api.Changed)

    def users(self) -> list[api.UserView]:
        return self._call("GET", "/users", list[api.UserView])

    def add_user(self, new: api.NewUser) -> api.Changed:
        return self._call("POST", "/users", api.Changed, new)

    def change_user(self, name: str, change: api.UserChange) -> api.Changed:
        return self._call("POST", f"/users/{part(name)}", api.Changed, change)

    def remove_user(self, name: str) -> api.Changed:
        return self._call("POST", f"/users/{part(name)}/remove", api.Changed)

    def set_password(self, name: str, new: api.NewPassword) -> api.Changed:
        return self._call("POST", f"/users/{part(name)}/password", api.Changed, new)

    def set_blocked(self, name: str, reason: str, *, is_blocked: bool) -> api.Changed:
        verb = "block" if is_blocked else "unblock"
        return self._call("POST", f"/users/{part(name)}/{part(verb)}", api.Changed, api.Reason(reason))

    def begin_terminal(self, new: NewTerminal) -> MadeTerminal:
        return self._call("POST", "/session/terminal", MadeTerminal, new)

    def end_terminal(self) -> api.Changed:
        return self._call("POST", "/session/end", api.Changed)

    def audit(self, after: int | None, limit: int) -> list[Entry]:
        """Entries above `after`, in order; with None the newest, the newest first."""
        start = "" if after is None else f"&after={after}"
        return self._call("GET", f"/audit?limit={limit}{start}", list[Entry])

    def audit_heads(self) -> list[str]:
        return self._call("GET", "/audit/heads", list[str])

    def audit_verdict(self) -> api.AuditVerdict:
        return self._call("GET", "/audit/verdict", api.AuditVerdict)

    def _call(self, method: str, path: str, kind: type[T], body: Any = None) -> T:
        content = msgspec.json.encode(body) if body is not None else None
        return self._read(self._send(method, path, content=content), method, path, kind)

    def _read(self, response: httpx.Response, method: str, path: str, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(response.content, type=kind)
        except msgspec.DecodeError as error:
            raise FleetError(
                f"{self._access.url} answered {method} {path} with something this client does not understand ({error}); "
                "are both the same version of EdgeKit?"
            ) from error

    def _send(self, method: str, path: str, content: bytes | Iterator[bytes] | None) -> httpx.Response:
        try:
            response = self._http.request(method, path, content=content)
        except httpx.HTTPError as error:
            raise AwayError(
                f"the fleet at {self._access.url} cannot be reached ({error}); is 'edgekit fleet up' running?"
            ) from error
        if response.is_success:
            return response
        raise _error_of(response)


def _pinned(access: Access) -> ssl.SSLContext:
    """TLS that believes the fleet's own authority only. Raises: UsageError."""
    try:
        made = ssl.create_default_context(cadata=access.ca)
    except ssl.SSLError as error:
        raise UsageError(f"the fleet's 'ca' cannot be read ({error}); copy client.toml again") from error
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    return made


def _error_of(response: httpx.Response) -> EdgeKitError:
    try:
        found = msgspec.json.decode(response.content, type=api.ErrorAnswer).error
    except msgspec.DecodeError:
        return FleetError(f"the fleet answered {response.status_code} {response.reason_phrase}")
    return _BY_CODE.get(found.code, FleetError)(safe.lines(found.message))
