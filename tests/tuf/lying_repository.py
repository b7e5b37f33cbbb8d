"""A repository of The Update Framework in memory behind a real HTTP server, and a device that asks it.

What `publish` signs is served from then on, so a test changes what it wants, publishes the roles that it wants, and
leaves out the others; bytes that are served instead of the true ones go into `instead`.
"""

import contextlib
import threading
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from securesystemslib.signer import CryptoSigner, Key, Signer
from tuf.api.metadata import (
    TOP_LEVEL_ROLE_NAMES,
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)

from device_agent.tuf.client import Client
from device_agent.tuf.kept import Kept
from device_agent.tuf.targets import bring
from device_agent.tuf.web import Web, plain

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


class Repository:
    """`served` maps URL paths to bytes; `asked` is what was requested, in order."""

    def __init__(self, folder: Path, *, expires: datetime = NOW + timedelta(days=30)) -> None:
        self.folder = folder
        self.expires = expires
        self.roles: dict[str, Metadata[Any]] = {
            "root": Metadata(Root(expires=expires)),
            "timestamp": Metadata(Timestamp(expires=expires)),
            "snapshot": Metadata(Snapshot(expires=expires)),
            "targets": Metadata(Targets(expires=expires)),
        }
        self.signers: dict[str, list[Signer]] = {role: [] for role in TOP_LEVEL_ROLE_NAMES}
        self.with_hashes = False
        self.served: dict[str, bytes] = {}
        self.instead: dict[str, bytes | int] = {}
        self.asked: list[str] = []
        self.ranges: list[str | None] = []
        for role in TOP_LEVEL_ROLE_NAMES:
            self.new_key(role)
        self.publish("root", "targets", "snapshot", "timestamp", bump=False)
        self.first_root = self.served["/metadata/1.root.json"]
        self._server = self._serve()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    # -- what it says --------------------------------------------------------------------------------------------

    @property
    def root(self) -> Root:
        return self.roles["root"].signed

    @property
    def timestamp(self) -> Timestamp:
        return self.roles["timestamp"].signed

    @property
    def snapshot(self) -> Snapshot:
        return self.roles["snapshot"].signed

    def targets(self, role: str = "targets") -> Targets:
        return self.roles[role].signed

    def new_key(
        self, role: str, signer: CryptoSigner | None = None, *, delegator: str = "root"
    ) -> CryptoSigner:
        made = signer or CryptoSigner.generate_ed25519()
        self.roles[delegator].signed.add_key(made.public_key, role)
        self.signers.setdefault(role, []).append(made)
        return made

    def rotate(self, role: str) -> None:
        """Another key instead of all that there were; root is not published."""
        self.root.roles[role].keyids.clear()
        self.signers[role].clear()
        self.new_key(role)

    def delegate(
        self, role: str, *, by: str = "targets", paths: Iterable[str] | None = ("*",), prefixes: Any = None,
        terminating: bool = False, signer: CryptoSigner | None = None,
    ) -> None:  # fmt: skip
        delegator = self.targets(by)
        if delegator.delegations is None:
            delegator.delegations = Delegations({}, roles={})
        assert delegator.delegations.roles is not None
        listed = list(paths) if paths is not None and prefixes is None else None
        delegator.delegations.roles[role] = DelegatedRole(role, [], 1, terminating, listed, prefixes)
        if role not in self.roles:
            self.roles[role] = Metadata(Targets(expires=self.expires))
        self.new_key(role, signer, delegator=by)

    def delegate_bins(self, bits: int) -> None:
        signer = CryptoSigner.generate_ed25519()
        bins = SuccinctRoles([], 1, bits, "bin")
        self.targets().delegations = Delegations({}, None, bins)
        self.targets().add_key(signer.public_key)
        for name in bins.get_roles():
            self.roles[name] = Metadata(Targets(expires=self.expires))
            self.signers[name] = [signer]

    def add(
        self, path: str, data: bytes, *, role: str = "targets", hashes: Iterable[str] = ("sha256",)
    ) -> None:
        target = TargetFile.from_data(path, data, list(hashes))
        self.targets(role).targets[path] = target
        names = target.get_prefixed_paths() if self.root.consistent_snapshot else [path]
        self.served |= {f"/targets/{name}": data for name in names}

    def publish(self, *roles: str, bump: bool = True) -> None:
        """Sign and serve; snapshot and timestamp list what was published before them."""
        for role in roles:
            metadata = self.roles[role]
            if bump:
                metadata.signed.version += 1
            data = self.signed(role)
            version = metadata.signed.version
            has_version = role == "root" or (self.root.consistent_snapshot and role != "timestamp")
            name = f"{version}.{role}.json" if has_version else f"{role}.json"
            self.served[f"/metadata/{name}"] = data
            listed = MetaFile.from_data(version, data, ["sha256"]) if self.with_hashes else MetaFile(version)
            if role == "snapshot":
                self.timestamp.snapshot_meta = listed
            elif role not in TOP_LEVEL_ROLE_NAMES or role == "targets":
                self.snapshot.meta[f"{role}.json"] = listed

    def signed(self, role: str) -> bytes:
        metadata = self.roles[role]
        metadata.signatures.clear()
        for signer in self.signers[role]:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def drop_version(self, role: str, to: int) -> None:
        self.roles[role].signed.version = to

    # -- how it serves -------------------------------------------------------------------------------------------

    def _serve(self) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"repository": self}))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    repository: Repository

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.repository.asked.append(self.path)
        self.repository.ranges.append(self.headers.get("Range"))
        said = self.repository.instead.get(self.path, self.repository.served.get(self.path))
        if said is None:
            said = self.repository.served.get(unquote(self.path), 404)
        if isinstance(said, int):
            self.send_response(said)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(said) - 1}/{len(said)}")
        self.send_header("Content-Length", str(len(said) - start))
        self.end_headers()
        # A device that has read enough hangs up.
        with contextlib.suppress(OSError):
            self.wfile.write(said[start:])


class Device:
    """A device of `repository`; each call is a process of its own as far as it knows."""

    def __init__(self, repository: Repository, *, root: bytes | None = None) -> None:
        self.repository = repository
        self.metadata = repository.folder / "metadata"
        self.files = repository.folder / "files"
        self.now = NOW
        self.kept = Kept(self.metadata)
        self.kept.start(root if root is not None else repository.first_root)

    def client(self) -> Client:
        web = Web(plain, document_s=20)
        return Client(self.kept, web, f"{self.repository.url}/metadata/", self.now)

    def refresh(self) -> None:
        self.client().refresh()

    def download(self, *paths: str) -> list[bytes]:
        client = self.client()
        client.refresh()
        got = []
        for path in paths:
            target = client.find(path)
            if target is None:
                raise LookupError(path)
            url = f"{self.repository.url}/targets/"
            file = bring(Web(plain), url, target, self.files, is_consistent=client.is_consistent)
            got.append(file.read_bytes())
        return got

    def versions(self) -> dict[str, int]:
        """What is kept, by role."""
        return {
            path.name.removesuffix(".json"): Metadata.from_file(str(path)).signed.version
            for path in sorted(self.metadata.glob("*.json"))
        }

    def asked(self) -> list[str]:
        """The metadata files requested since the last call, without the folder and the ending."""
        names = [path.rsplit("/", 1)[-1].removesuffix(".json") for path in self.repository.asked]
        self.repository.asked.clear()
        return names


def of_kind(kind: str) -> CryptoSigner:
    """A key of each scheme that metadata may name."""
    make: dict[str, Any] = {
        "ed25519": CryptoSigner.generate_ed25519,
        "ecdsa": CryptoSigner.generate_ecdsa,
        "rsassa-pss": CryptoSigner.generate_rsa,
        "rsa-pkcs1v15": lambda: CryptoSigner.generate_rsa(scheme="rsa-pkcs1v15-sha256"),
    }
    return make[kind]()


def renamed(key: Key, keyid: str) -> Key:
    """The same key under another id."""
    return Key.from_dict(keyid, key.to_dict())
