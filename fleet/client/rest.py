"""The REST client: one method per thing a person does, typed by the structs of `fleet.api`.

    from fleet.client import connect

    with connect("https://fleet.example.com", token, ca=Path("ca.pem").read_text()) as fleet:
        for device in fleet.devices():
            print(device.device, device.online)

Errors of the service come back as the classes that raised it there (`edgekit.errors`): `NotFoundError`, `ConflictError`,
`ChangedMeanwhileError`, … Where the connection breaks, a request is sent again and done once.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlencode

import httpx

from edgekit.errors import FleetError
from edgekit.wire.enrolment import EnrolmentFile
from fleet import api
from fleet.api.history import ArmPoint
from fleet.audit_entry import Entry
from fleet.client.config import Access, safe
from fleet.client.transport import TIMEOUT, Transport, at
from fleet.terminal import MadeTerminal, NewTerminal

CHUNK_BYTES = 1 << 20
_PAGE = 500


def connect(url: str, token: str, *, ca: str = "") -> "Client":
    """A client of the fleet at `url`; `ca` is PEM text that pins its certificate.

    Raises: UsageError where the token would go in the clear to another machine, or `ca` is no PEM text.
    """
    return Client(safe(Access(url.rstrip("/"), token, ca=ca)))


class Client:
    """Talks to one fleet service."""

    def __init__(self, access: Access, timeout: httpx.Timeout = TIMEOUT) -> None:
        self._transport = Transport(access, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    def openapi(self) -> str:
        """The description of the REST interface, as JSON."""
        return self._transport.send("GET", f"{self._transport.url}/openapi.json").text

    def events(self, since: str = "") -> Iterator[tuple[str, api.Change]]:
        """(id, what changed) as it changes, until the connection ends; with `since`, an id, also what did after that."""
        return self._transport.events(since)

    def status(self) -> api.FleetView:
        return self._transport.call("GET", "/status", api.FleetView)

    def keys(self) -> api.KeysView:
        return self._transport.call("GET", "/keys", api.KeysView)

    def metadata(self) -> api.MetadataView:
        return self._transport.call("GET", "/metadata", api.MetadataView)

    def offer(self, new: api.NewMetadata) -> api.MetadataView:
        return self._transport.call("POST", "/metadata", api.MetadataView, new)

    def next_online_key(self) -> api.PublicKey:
        return self._transport.call("POST", "/metadata/online-key", api.PublicKey)

    def next_order_key(self) -> api.OrderKey:
        return self._transport.call("POST", "/metadata/order-key", api.OrderKey)

    def freeze(self, *, is_frozen: bool, reason: str) -> api.FleetView:
        return self._transport.call("POST", "/freeze", api.FleetView, api.Freeze(is_frozen, reason))

    def enroll(self, device: api.NewDevice) -> EnrolmentFile:
        return self._transport.call("POST", "/devices", EnrolmentFile, device)

    def batch(self, wanted: api.NewBatch) -> EnrolmentFile:
        return self._transport.call("POST", "/batches", EnrolmentFile, wanted)

    def batches(self) -> list[api.BatchView]:
        return list(self._transport.pages("/batches", api.BatchView))

    def revoke_batch(self, batch: str) -> api.Done:
        return self._transport.call("POST", at("/batches/{}/revoke", batch), api.Done)

    def waiting(self) -> list[api.Waiting]:
        return list(self._transport.pages("/waiting", api.Waiting))

    def decide(self, device: str, *, is_approved: bool) -> api.Done:
        return self._transport.call(
            "POST", at("/waiting/{}/{}", device, "approve" if is_approved else "reject"), api.Done
        )

    def revoke(self, device: str, reason: str) -> api.Done:
        return self._transport.call("POST", at("/devices/{}/revoke", device), api.Done, api.Reason(reason))

    def decommission(self, device: str, reason: str) -> api.Done:
        return self._transport.call(
            "POST", at("/devices/{}/decommission", device), api.Done, api.Reason(reason)
        )

    def delete(self, device: str, reason: str) -> api.Done:
        return self._transport.call("POST", at("/devices/{}/delete", device), api.Done, api.Reason(reason))

    def label(self, device: str, labels: api.NewLabels, *, if_match: str = "") -> api.Done:
        return self._transport.call(
            "POST", at("/devices/{}/labels", device), api.Done, labels, if_match=if_match
        )

    def replace(self, device: str, wanted: api.Replacement) -> EnrolmentFile:
        return self._transport.call("POST", at("/devices/{}/replace", device), EnrolmentFile, wanted)

    def retry_device(self, device: str, *, despite_budget: bool = False) -> api.Retried:
        how = api.RetryDevice(despite_budget) if despite_budget else None
        return self._transport.call("POST", at("/devices/{}/retry", device), api.Retried, how)

    def command(self, device: str, wanted: api.NewCommand) -> api.CommandView:
        return self._transport.call("POST", at("/devices/{}/commands", device), api.CommandView, wanted)

    def commands(self, device: str) -> Iterator[api.CommandView]:
        """What was asked of a device, the newest first."""
        return self._transport.pages(at("/devices/{}/commands", device), api.CommandView)

    def command_of(self, device: str, command: str) -> api.CommandView:
        return self._transport.call("GET", at("/devices/{}/commands/{}", device, command), api.CommandView)

    def retry(self, rollout_id: str, devices: tuple[str, ...] = ()) -> api.Retried:
        return self._transport.call(
            "POST", at("/rollouts/{}/retry", rollout_id), api.Retried, api.Retry(devices)
        )

    def assignments(self) -> list[api.AssignmentView]:
        return list(self._transport.pages("/assignments", api.AssignmentView))

    def assign(self, wanted: api.NewAssignment) -> api.Assigned:
        return self._transport.call("POST", "/assignments", api.Assigned, wanted)

    def unassign(self, assignment: str, reason: str) -> api.Changed:
        return self._transport.call(
            "POST", at("/assignments/{}/remove", assignment), api.Changed, api.Reason(reason)
        )

    def add_deployment(self, device: str, deployment: str) -> api.Done:
        return self._transport.call(
            "POST", at("/devices/{}/deployments", device), api.Done, api.NewDeployment(deployment)
        )

    def devices(self, where: str = "", sort: str = "") -> list[api.DeviceView]:
        """All that a filter finds, in this order."""
        return list(self.find(where, sort))

    def find(self, where: str = "", sort: str = "", *, page: int = _PAGE) -> Iterator[api.DeviceView]:
        """The same one by one; a page is asked for when the one before is used up."""
        given = {"where": where, "sort": sort, "limit": str(page)}
        query = urlencode({name: value for name, value in given.items() if value})
        return self._transport.pages(f"/devices?{query}", api.DeviceView)

    def count(self, where: str = "") -> int:
        """How many devices a filter finds."""
        query = urlencode({"where": where, "limit": 1, "count": "true"})
        answer = self._transport.send("GET", f"/devices?{query}")
        return int(answer.headers.get("X-Total-Count", "0"))

    def names_after(self, name: str, most: int) -> list[str]:
        """Of devices that come after this name, by name."""
        path = f"/devices?{urlencode({'after': name, 'limit': most})}"
        return [one.device for one in self._transport.call("GET", path, list[api.DeviceView])]

    def explain(self, device: str) -> api.Explanation:
        return self._transport.call("GET", at("/devices/{}/explain", device), api.Explanation)

    def releases(self) -> list[api.ReleaseView]:
        return list(self._transport.pages("/releases", api.ReleaseView))

    def bundle(self, name: str, version: str, profile: str) -> api.BundleView:
        """Raises: NotFoundError if it is not published."""
        return self._transport.call("GET", at("/bundles/{}/{}/{}", name, version, profile), api.BundleView)

    def upload(self, path: Path, sha256: str, progress: Callable[[int], None]) -> None:
        """Send a bundle file; `progress` gets the number of bytes of each piece."""

        def pieces() -> Iterator[bytes]:
            with path.open("rb") as stream:
                while piece := stream.read(CHUNK_BYTES):
                    yield piece
                    progress(len(piece))

        self._transport.send("PUT", at("/uploads/{}", sha256), pieces(), handled_bytes=path.stat().st_size)

    def upload_bytes(self, data: bytes, sha256: str) -> None:
        self._transport.send("PUT", at("/uploads/{}", sha256), data)

    def file(self, sha256: str, length: int) -> bytes:
        """A published bundle's file. Raises: FleetError if it is not just that."""
        data = self._transport.send("GET", at("/files/{}", sha256)).content
        if len(data) != length or hashlib.sha256(data).hexdigest() != sha256:
            raise FleetError(f"the fleet sent another file than {sha256[:12]}…")
        return data

    def register(self, bundle: api.NewBundle, length: int = 0) -> api.PublishAnswer:
        """An uploaded and listed bundle of `length` bytes, which the service reads."""
        return self._transport.call("POST", "/bundles", api.PublishAnswer, bundle, handled_bytes=2 * length)

    def lend(self, finalist: api.NewFinalist) -> api.Lent:
        """An uploaded and listed bundle that boards may fetch to measure it."""
        return self._transport.call("POST", "/finalists", api.Lent, finalist)

    def take_back(self, sha256: str) -> api.Lent:
        return self._transport.call("POST", at("/finalists/{}/remove", sha256), api.Lent)

    def statement(self, sha256: str) -> bytes:
        """A bundle's evidence. Raises: NotFoundError if none was published with it."""
        return self._transport.send("GET", at("/evidence/{}", sha256)).content

    def pick(self, name: str, version: str, profile: str, pick: api.NewPick) -> api.BundleView:
        """Another bundle of a release for a profile, of those that were published for it."""
        path = at("/bundles/{}/{}/{}/pick", name, version, profile)
        return self._transport.call("POST", path, api.BundleView, pick)

    def blocked(self) -> list[api.BlockedView]:
        return list(self._transport.pages("/blocked", api.BlockedView))

    def block(self, subject: str, reason: str) -> api.BlockAnswer:
        return self._transport.call("POST", "/blocked", api.BlockAnswer, api.Block(subject, reason))

    def unblock(self, subject: str, reason: str) -> api.BlockAnswer:
        return self._transport.call(
            "POST", at("/blocked/{}/remove", subject), api.BlockAnswer, api.Reason(reason)
        )

    def start(self, rollout: api.NewRollout) -> api.RolloutAnswer:
        return self._transport.call("POST", "/rollouts", api.RolloutAnswer, rollout)

    def rollouts(self) -> list[api.RolloutView]:
        return list(self._transport.pages("/rollouts", api.RolloutView))

    def rollout(self, rollout_id: str) -> api.RolloutView:
        return self._transport.call("GET", at("/rollouts/{}", rollout_id), api.RolloutView)

    def wanted(self, rollout_id: str) -> api.NewRollout:
        """What a rollout was started with."""
        return self._transport.call("GET", at("/rollouts/{}/wanted", rollout_id), api.NewRollout)

    def rollout_history(self, rollout_id: str) -> list[ArmPoint]:
        """Canary and control of its stages over time."""
        return self._transport.call("GET", at("/rollouts/{}/history", rollout_id), list[ArmPoint])

    def drift(self) -> api.DriftAnswer:
        """What devices say of drift, of each bundle that runs."""
        return self._transport.call("GET", "/drift", api.DriftAnswer)

    def members(self, rollout_id: str, state: str = "") -> Iterator[api.MemberView]:
        """All devices of a rollout by name, or those in a state; page by page."""
        only = f"?{urlencode({'state': state})}" if state else ""
        return self._transport.pages(at("/rollouts/{}/members", rollout_id) + only, api.MemberView)

    def turn(
        self, rollout_id: str, verb: str, how: api.Turn | None = None, *, if_match: str = ""
    ) -> api.RolloutView:
        """With `if_match`, the `tag` of a view, only if nobody decided anything since. Raises: ChangedMeanwhileError."""
        path = at("/rollouts/{}/{}", rollout_id, verb)
        return self._transport.call("POST", path, api.RolloutView, how, if_match=if_match)

    def start_experiment(self, experiment: api.NewExperiment) -> api.ExperimentView:
        return self._transport.call("POST", "/experiments", api.ExperimentView, experiment)

    def experiments(self) -> list[api.ExperimentView]:
        return list(self._transport.pages("/experiments", api.ExperimentView))

    def experiment(self, experiment: str) -> api.ExperimentView:
        return self._transport.call("GET", at("/experiments/{}", experiment), api.ExperimentView)

    def end_experiment(self, experiment: str, adopt: str = "") -> api.ExperimentView:
        path = (
            at("/experiments/{}/adopt/{}", experiment, adopt)
            if adopt
            else at("/experiments/{}/stop", experiment)
        )
        return self._transport.call("POST", path, api.ExperimentView)

    def collect(self, wanted: api.NewCollection) -> api.CollectionView:
        """Let devices keep inputs and bring them."""
        return self._transport.call("POST", "/samples", api.CollectionView, wanted)

    def start_shadow(self, shadow: api.NewShadow) -> api.ShadowView:
        return self._transport.call("POST", "/shadows", api.ShadowView, shadow)

    def shadows(self) -> list[api.ShadowView]:
        return list(self._transport.pages("/shadows", api.ShadowView))

    def shadow(self, shadow: str) -> api.ShadowView:
        return self._transport.call("GET", at("/shadows/{}", shadow), api.ShadowView)

    def stop_shadow(self, shadow: str) -> api.ShadowView:
        return self._transport.call("POST", at("/shadows/{}/stop", shadow), api.ShadowView)

    def collections(self) -> list[api.CollectionView]:
        return list(self._transport.pages("/samples", api.CollectionView))

    def samples(self, collection: str) -> Iterator[api.SampleView]:
        """What came for a collection, page by page."""
        return self._transport.pages(at("/samples/{}/items", collection), api.SampleView)

    def sample(self, collection: str, sha256: str) -> bytes:
        """One sample's file. Raises: FleetError if it is not just that."""
        data = self._transport.send("GET", at("/samples/{}/files/{}", collection, sha256)).content
        if hashlib.sha256(data).hexdigest() != sha256:
            raise FleetError(f"the fleet sent another sample than {sha256[:12]}…")
        return data

    def stop_collection(self, collection: str) -> api.Changed:
        return self._transport.call("POST", at("/samples/{}/stop", collection), api.Changed)

    def delete_collection(self, collection: str) -> api.SamplesGone:
        return self._transport.call("POST", at("/samples/{}/remove", collection), api.SamplesGone)

    def whoami(self) -> api.Whoami:
        return self._transport.call("GET", "/whoami", api.Whoami)

    def tokens(self) -> list[api.TokenView]:
        return list(self._transport.pages("/tokens", api.TokenView))

    def add_token(self, new: api.NewToken) -> api.MadeToken:
        return self._transport.call("POST", "/tokens", api.MadeToken, new)

    def revoke_token(self, name: str) -> api.Changed:
        return self._transport.call("POST", at("/tokens/{}/revoke", name), api.Changed)

    def users(self) -> list[api.UserView]:
        return list(self._transport.pages("/users", api.UserView))

    def add_user(self, new: api.NewUser) -> api.Changed:
        return self._transport.call("POST", "/users", api.Changed, new)

    def change_user(self, name: str, change: api.UserChange, *, if_match: str = "") -> api.Changed:
        return self._transport.call("POST", at("/users/{}", name), api.Changed, change, if_match=if_match)

    def remove_user(self, name: str) -> api.Changed:
        return self._transport.call("POST", at("/users/{}/remove", name), api.Changed)

    def set_password(self, name: str, new: api.NewPassword) -> api.Changed:
        return self._transport.call("POST", at("/users/{}/password", name), api.Changed, new)

    def set_blocked(self, name: str, reason: str, *, is_blocked: bool) -> api.Changed:
        verb = "block" if is_blocked else "unblock"
        return self._transport.call("POST", at("/users/{}/{}", name, verb), api.Changed, api.Reason(reason))

    def begin_terminal(self, new: NewTerminal) -> MadeTerminal:
        return self._transport.call("POST", "/session/terminal", MadeTerminal, new)

    def end_terminal(self) -> api.Changed:
        return self._transport.call("POST", "/session/end", api.Changed)

    def audit(self, after: int | None, limit: int) -> list[Entry]:
        """Entries above `after`, in order; with None the newest, the newest first."""
        start = "" if after is None else f"&after={after}"
        return self._transport.call("GET", f"/audit?limit={limit}{start}", list[Entry])

    def audit_heads(self) -> list[str]:
        return self._transport.call("GET", "/audit/heads", list[str])

    def audit_verdict(self) -> api.AuditVerdict:
        return self._transport.call("GET", "/audit/verdict", api.AuditVerdict)

    def alerts(self, *, ended: bool = False) -> list[api.AlertView]:
        """Those that stand, or the newest that ended."""
        path = f"/alerts?ended={'true' if ended else 'false'}"
        return list(self._transport.pages(path, api.AlertView))

    def acknowledge(self, alert: str, reason: str = "") -> api.Changed:
        return self._transport.call(
            "POST", at("/alerts/{}/acknowledge", alert), api.Changed, api.Reason(reason)
        )

    def targets(self) -> list[api.TargetView]:
        return list(self._transport.pages("/alert-targets", api.TargetView))

    def add_target(self, new: api.NewTarget) -> api.Changed:
        return self._transport.call("POST", "/alert-targets", api.Changed, new)

    def remove_target(self, name: str) -> api.Changed:
        return self._transport.call("POST", at("/alert-targets/{}/remove", name), api.Changed)

    def try_target(self, name: str) -> api.TargetTried:
        return self._transport.call("POST", at("/alert-targets/{}/test", name), api.TargetTried)
