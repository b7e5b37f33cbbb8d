"""The short way to a bundle: taken where it leads there, and where it does not, the whole bundle comes all the same."""

import bz2
import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import bsdiff4
import pytest

from device_agent import durable
from device_agent.blocking import Stopper
from device_agent.folder import DeploymentFolder
from device_agent.network import Access
from device_agent.tuf.question import Listed
from device_agent.update import patching
from device_agent.update.fetch import FetchError, Received, Source
from device_agent.update.shortcut import Offer, Shortcuts
from edgekit import delta
from edgekit.delta import HEADER, MAGIC, TRIPLE
from edgekit.extracted import Extracted
from edgekit.wire.messages import OrderedBundle


class Server:
    """Gives out `files`; `cut` maps one to how many bytes come before the link fails, each time."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: dict[str, int] = {}
        self.asked: list[tuple[str, str | None]] = []
        handler = type("Handler", (_Handler,), {"server_files": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def add(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self.files[digest] = data
        return digest


class _Handler(BaseHTTPRequestHandler):
    server_files: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        own = self.server_files
        name, wanted = self.path.rpartition("/")[2], self.headers.get("Range")
        own.asked.append((name, wanted))
        data = own.files.get(name)
        if data is None:
            self.send_error(404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(data[start:][: own.cut.get(name)])


class Device:
    """A device that has `first` in slot A, and is ordered to run `second`."""

    def __init__(
        self, root: Path, first: Any, second: Any, stage: Callable[..., Path], server: Server
    ) -> None:
        self.folder = DeploymentFolder(root / "deployments" / "digits")
        self.first, self.second, self.server = first, second, server
        self.slot = stage(self.folder, first)
        self.wanted = OrderedBundle(second.target, second.sha256, second.length)
        server.add(second.path.read_bytes())
        self.delta = bsdiff4.diff(first.path.read_bytes(), second.path.read_bytes())
        assert len(self.delta) < second.length / 2
        self.received = Received(second.sha256)
        self.begin()

    def begin(self) -> None:
        """As after a start of the agent: what is not on disk is forgotten."""
        url = f"http://127.0.0.1:{self.server.http.server_port}/artifacts"
        source = Source(url, Access("", ("127.0.0.1",), lambda: None), None)
        self.shortcuts = Shortcuts(self.folder, source)

    def bring(
        self, patch: bytes | None = None, *, given: bool = True, stopping: Stopper | None = None
    ) -> None:
        """Fetch, with `patch` signed as the delta; the server has it if it is `given`. In the end the bundle must be right."""
        patch = self.delta if patch is None else patch
        if given:
            self.server.add(patch)
        listed = Listed(len(patch), hashlib.sha256(patch).hexdigest(), self.first.sha256, "bsdiff40")
        offers = [Offer(self.slot, self.first.sha256, listed)]
        bundle = self.shortcuts.bring(self.wanted, offers, stopping or Stopper(), self.received)
        assert bundle.path.read_bytes() == self.second.path.read_bytes()

    def asked_for(self) -> str:
        """What was asked of the server: d for the delta, w for the whole bundle."""
        return "".join("w" if name == self.second.sha256 else "d" for name, _range in self.server.asked)


@pytest.fixture
def server() -> Iterator[Server]:
    started = Server()
    yield started
    started.http.shutdown()
    started.http.server_close()


@pytest.fixture
def device(tmp_path: Path, make_bundle: Any, stage: Any, server: Server) -> Device:
    first, second = make_bundle(version="1.0.0", seed=1), make_bundle(version="1.1.0", seed=1)
    return Device(tmp_path / "state", first, second, stage, server)


def test_a_device_that_has_the_base_fetches_the_delta_alone(device: Device) -> None:
    device.bring()
    assert device.asked_for() == "d"
    assert device.received == Received(device.second.sha256, len(device.delta), by_delta=True, is_whole=True)
    assert [path.name for path in device.folder.fetch.glob("*.edgekit")] == [
        f"{device.second.sha256}.edgekit"
    ]
    assert not list(device.folder.fetch.glob("*.part"))


def test_without_the_base_the_whole_bundle_comes(device: Device) -> None:
    device.shortcuts.bring(device.wanted, [], Stopper(), device.received)
    assert device.asked_for() == "w"
    assert device.received.size == device.second.length
    assert not device.received.by_delta


def bomb(length: int) -> bytes:
    blocks = [
        bz2.compress(TRIPLE.pack(length * 1000, 0, 0)),
        bz2.compress(bytes(100 << 20)),
        bz2.compress(b""),
    ]
    return HEADER.pack(MAGIC, len(blocks[0]), len(blocks[1]), length) + b"".join(blocks)


@pytest.mark.parametrize("kind", ["rubbish", "another-file", "longer", "bomb", "nothing"])
def test_a_signed_delta_that_gives_another_file_wastes_one_download_and_no_more(
    device: Device, kind: str
) -> None:
    """And it is not tried again, not even by the next start of the agent."""
    old, new = device.first.path.read_bytes(), device.second.path.read_bytes()
    wrong = {
        "rubbish": b"BSDIFF40" + b"x" * 200,
        "another-file": bsdiff4.diff(old, new[:-1] + b"x"),
        "longer": bsdiff4.diff(old, new + b"more"),
        "bomb": bomb(len(new)),
        "nothing": bsdiff4.diff(old, b""),
    }[kind]
    device.bring(wrong)
    assert device.asked_for() == "dw"
    assert not device.received.by_delta
    durable.remove(device.folder.fetch / f"{device.second.sha256}.edgekit")
    device.begin()
    device.bring(wrong)
    assert device.asked_for() == "dww"


def test_a_delta_that_was_damaged_on_the_way_is_never_opened(device: Device, monkeypatch: Any) -> None:
    digest = hashlib.sha256(device.delta).hexdigest()
    device.server.files[digest] = bytes(len(device.delta))
    monkeypatch.setattr(patching, "patched", None)
    device.bring(given=False)
    assert device.asked_for() == "dw"


def test_a_delta_that_the_server_withholds_is_done_without(device: Device) -> None:
    device.bring(given=False)
    assert device.asked_for() == "dw"


def test_a_delta_that_never_arrives_is_done_without_in_the_end(device: Device) -> None:
    """The link fails each time after a few bytes: a failing link is waited for, a withholding server is not for ever."""
    digest = device.server.add(device.delta)
    device.server.cut[digest] = 10
    for _ in range(2):
        with pytest.raises(FetchError, match="ended"):
            device.bring()
    device.bring()
    assert device.asked_for() == "dddw"
    ranges = [wanted for name, wanted in device.server.asked if name == digest]
    assert ranges == [None, "bytes=10-", "bytes=20-"]
    assert device.received.size == 30 + device.second.length


def test_a_slot_that_is_damaged_is_no_base_and_no_delta_is_asked_for(device: Device) -> None:
    model = device.slot / "model" / "model.onnx"
    data = bytearray(model.read_bytes())
    data[100] ^= 1
    model.write_bytes(data)
    device.bring()
    assert device.asked_for() == "w"


def test_a_slot_that_lost_a_file_is_no_base(device: Device) -> None:
    (device.slot / "model" / "model.onnx").unlink()
    device.bring()
    assert device.asked_for() == "w"


def test_where_less_is_missing_of_the_bundle_that_goes_on(device: Device) -> None:
    have = device.second.length - 10
    durable.make_folder(device.folder.fetch)
    part = device.folder.fetch / f"{device.second.sha256}.{have}.part"
    part.write_bytes(device.second.path.read_bytes()[:have])
    device.bring()
    assert device.server.asked == [(device.second.sha256, f"bytes={have}-")]


def test_where_the_power_fails_the_bundle_comes_after_all(device: Device, monkeypatch: Any) -> None:
    """Cut before each of the changes that the short way makes to the disk; what the next start finds, it copes with."""

    class PowerCutError(BaseException):
        pass

    def patched(_state: Path, slot: Path, patch: Path, length: int, _stopping: Stopper) -> Any:
        """Without a process, which is the same for all of them."""
        with Extracted(slot) as base, patch.open("rb") as data:
            yield from delta.apply(base, data, length)

    monkeypatch.setattr("device_agent.update.shortcut.patched", patched)
    changes: list[durable.Operation] = []
    with durable.watched(changes.append):
        device.bring()
    kinds = [(one.kind, one.path.suffix) for one in changes]
    assert kinds.index(("sync", ".made")) < kinds.index(("rename", ".made"))

    for number in range(len(changes)):
        durable.remove(device.folder.fetch)
        device.begin()
        left = iter(range(number))

        def cut(_operation: durable.Operation, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise PowerCutError

        with pytest.raises(PowerCutError), durable.watched(cut):
            device.bring()
        device.begin()
        device.bring()


def test_a_disk_that_is_full_is_no_try_of_the_delta(device: Device) -> None:
    def full(operation: durable.Operation) -> None:
        if operation.kind == "write" and operation.path.suffix == ".made":
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"), durable.watched(full):
        device.bring()
    device.bring()
    assert "w" not in device.asked_for()


def test_who_is_told_to_stop_leaves_the_delta_for_the_next_time(device: Device, monkeypatch: Any) -> None:
    stopping = Stopper()
    made = patching.patched

    def stopped(*words: Any) -> Any:
        stopping.set()
        return made(*words)

    monkeypatch.setattr("device_agent.update.shortcut.patched", stopped)
    with pytest.raises(InterruptedError):
        device.bring(stopping=stopping)
    monkeypatch.undo()
    device.bring()
    assert "w" not in device.asked_for()


def test_a_child_that_hangs_is_ended(device: Device, monkeypatch: Any) -> None:
    monkeypatch.setattr(patching, "TIMEOUT_S", 0.0)
    device.bring()
    assert device.asked_for() == "dw"
