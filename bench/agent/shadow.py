"""What a shadow costs those who wait for the served model: latency with and without one, in turns, as a paired ratio.

A real worker serves a bundle over HTTP to one client that asks again and again; the shadow's own process compares the same
or another bundle for at most its share. Turns of some seconds alternate: the shadow's process is stopped (SIGSTOP) in every
other one. Each pair of turns gives a ratio of the means (what all calls together take longer), of the medians and of the 95th
percentiles; shown are their geometric means with a bootstrap interval of 95 %. A share of 10 % lies beside some tenth of the
calls: it shows in the mean and the 95th percentile rather than in the median.

The shadow is at idle priority, as on a device: on a machine that is busy with other work it gets no processor, compares
nothing, and the figures say nothing (`compared` tells). While it is stopped it earns processor time on, up to two seconds'
worth, so that in its own turns it may take up to twice its share; what it took is shown of its turns and of the whole time.

Run:  python bench/agent/shadow.py [SERVED.edgekit [SHADOW.edgekit]] [--share 0.1] [--pairs 20] [--seconds 2] [--json FILE]
Without a bundle the digits example is built first. 20 pairs of 2 s take 90 s.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import load
import msgspec
import numpy as np
import overhead

from device_agent.channel import Shadowed
from device_agent.folder import DeploymentFolder
from device_agent.update import slots
from edgekit import bundle
from edgekit.manifest import Manifest
from edgekit.wire.messages import ShadowWindow

FIGURES: dict[str, Callable[[load.Result], float]] = {
    "mean": lambda found: float(np.mean(found.latencies_ms)),
    "p50": lambda found: found.quantile(0.5),
    "p95": lambda found: found.quantile(0.95),
}
DRAWS = 4000


def staged(folder: Path, path: Path) -> Path:
    """A slot as an agent has it."""
    checked = bundle.read(path)
    own = DeploymentFolder(folder)
    folder.mkdir(parents=True)
    own.cache.mkdir()
    m = checked.manifest
    slots.stage(own, "A", checked, f"{m.name}/{m.version}/{m.profile}/{checked.sha256}.edgekit")
    return own.slot("A")


@contextlib.contextmanager
def serving(slot: Path) -> Iterator[tuple[int, socket.socket]]:
    """A worker: the port that it serves at, and the channel to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    words = ["--parent", str(os.getpid()), "--channel", str(theirs.fileno()), "--deployment", "m",
             "--deployments", "m", "--slot", str(slot), "--cache", str(slot.parent / "cache")]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "device_agent.worker", *words], pass_fds=[theirs.fileno()]
    )
    theirs.close()
    told = json.loads(ours.recv(1 << 18)[1:])
    if told["type"] != "ready":
        raise SystemExit(f"the worker does not start: {told}")
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                socket.send_fds(ours, [b"C"], [client.fileno()])
                client.close()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1], ours
    finally:
        listener.close()
        process.kill()
        process.wait()


@contextlib.contextmanager
def shadowing(slot: Path, channel: socket.socket, share: float) -> Iterator[tuple[int, list[ShadowWindow]]]:
    """A shadow fed by the worker: its pid, and what it told so far."""
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    feed, fed = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    words = ["--parent", str(os.getpid()), "--control", str(theirs.fileno()), "--feed", str(fed.fileno()),
             "--share", str(share), "--slot", str(slot), "--cache", str(slot.parent / "cache")]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "device_agent.shadow.process", *words],
        pass_fds=[theirs.fileno(), fed.fileno()],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    theirs.close()
    fed.close()
    told = json.loads(control.recv(1 << 18)[1:])
    if told["type"] != "ready":
        raise SystemExit(f"the shadow does not start: {told}")
    socket.send_fds(channel, [b"F" + str(share).encode()], [feed.fileno()])
    windows: list[ShadowWindow] = []

    def hear() -> None:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            while packet := control.recv(1 << 18):
                windows.append(msgspec.json.decode(packet[1:], type=Shadowed).window)

    threading.Thread(target=hear, daemon=True).start()
    try:
        yield process.pid, windows
    finally:
        process.kill()
        process.wait()


def request_of(manifest: Manifest) -> bytes:
    """A whole HTTP request with binary tensors."""
    chance = np.random.default_rng(0)
    inputs = {s.name: chance.random(s.shape, np.float32).astype(s.dtype) for s in manifest.inputs}
    body, headers = overhead.binary_request(manifest, inputs)
    lines = [f"POST /v2/models/m/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def cpu_s(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Geometric mean with its bootstrap interval of 95 %."""
    logs = np.log(ratios)
    draws = np.random.default_rng(0).choice(logs, (DRAWS, len(logs))).mean(axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(np.exp(logs.mean())), float(np.exp(low)), float(np.exp(high))


def main() -> None:
    parser = argparse.ArgumentParser(description="Latency of a served model with and without a shadow.")
    parser.add_argument("served", type=Path, nargs="?")
    parser.add_argument("shadow", type=Path, nargs="?")
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path, dest="out")
    chosen = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        served = chosen.served or overhead.build(folder)
        slot = staged(folder / "served", served)
        port, channel = stack.enter_context(serving(slot))
        beside = staged(folder / "shadow", chosen.shadow or served)
        pid, windows = stack.enter_context(shadowing(beside, channel, chosen.share))
        request, connect = request_of(bundle.read(served).manifest), load.tcp(port)
        load.run(connect, request, 1, chosen.seconds)
        ratios: dict[str, list[float]] = {name: [] for name in FIGURES}
        spent = began = 0.0
        began_all = time.monotonic()
        for pair in range(chosen.pairs):
            found: dict[bool, load.Result] = {}
            for is_with in (pair % 2 == 0, pair % 2 == 1):
                os.kill(pid, signal.SIGCONT if is_with else signal.SIGSTOP)
                before, since = cpu_s(pid), time.monotonic()
                found[is_with] = load.run(connect, request, 1, chosen.seconds)
                if is_with:
                    spent, began = spent + cpu_s(pid) - before, began + time.monotonic() - since
            for name, figure in FIGURES.items():
                ratios[name].append(figure(found[True]) / figure(found[False]))
            whole = time.monotonic() - began_all
        os.kill(pid, signal.SIGCONT)
        time.sleep(1.5)
        result = {
            "ratios": {name: interval(found) for name, found in ratios.items()},
            "share_of_turns": spent / began,
            "share_used": spent / whole,
            "compared": sum(window.compared for window in windows),
            "dropped": sum(window.dropped for window in windows),
        }
    for name, (mean, low, high) in result["ratios"].items():
        print(f"{name}: x {mean:.3f} ({low:.3f} to {high:.3f}) with a shadow, of {chosen.pairs} pairs")
    print(
        f"the shadow took {result['share_used']:.1%} of a processor (at most {chosen.share:.0%}; of its turns"
        f" {result['share_of_turns']:.1%}), compared {result['compared']}, {result['dropped']} served without a copy"
    )
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
