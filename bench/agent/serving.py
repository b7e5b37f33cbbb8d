"""What serving through the agent costs and carries, beside the bare engine and MLServer, in one run on one machine.

One real agent, enrolled with a real fleet service, serves a bundle over a Unix socket, TCP and TLS; MLServer serves the
same model file in an environment of its own; a process of its own holds nothing but the engine. The same bytes go to
each (MLServer takes JSON only). Rounds alternate between all of them, so that a slow minute hits every one; the median
round is shown. PSS is of all processes of a server.

Run:  python bench/agent/serving.py [BUNDLE] [--seconds 3] [--rounds 3] [--no-mlserver] [--json FILE]
"""

import argparse
import datetime as dt
import ipaddress
import json
import os
import re
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import load
import numpy as np
import overhead
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgekit import bundle
from edgekit.detect import cpu_name
from edgekit.manifest import Manifest

HERE = Path(__file__).parent
CLIENTS = (1, 4, 16, 64)
SLOW = 32
MLSERVER = ("mlserver==1.7.1", "onnxruntime")
BARE = """
import sys, time, json
from pathlib import Path
import numpy as np
from edgekit import manifest
from edgekit.engines import LoadedBundle
folder = Path(sys.argv[1])
found = manifest.decode((folder / "manifest.json").read_bytes())
model = LoadedBundle(found, folder)
generator = np.random.default_rng(0)
inputs = {s.name: generator.random(s.shape, np.float32).astype(s.dtype) for s in found.inputs}
for line in sys.stdin:
    until, times = time.perf_counter() + float(line), []
    while time.perf_counter() < until:
        began = time.perf_counter()
        model.run(inputs)
        times.append((time.perf_counter() - began) * 1000)
    print(json.dumps(times), flush=True)
"""


@dataclass
class Server:
    """Something to be measured: how to connect, what to send, and the process whose tree holds it."""

    name: str
    connect: load.Connect
    request: bytes
    pid: int


def pss_mb(pid: int) -> float:
    """Of a process and all below it."""
    total = 0
    for found in [pid, *descendants(pid)]:
        try:
            text = Path(f"/proc/{found}/smaps_rollup").read_text()
        except OSError:
            continue
        total += int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1])
    return total / 1024


def descendants(pid: int) -> list[int]:
    found = [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]
    return [*found, *(below for child in found for below in descendants(child))]


def requests(manifest: Manifest, name: str) -> tuple[bytes, bytes]:
    """The same call as JSON and as binary tensors, whole HTTP requests."""
    generator = np.random.default_rng(0)
    inputs = {s.name: generator.random(s.shape, np.float32).astype(s.dtype) for s in manifest.inputs}
    body, headers = overhead.binary_request(manifest, inputs)
    tensors = json.loads(body[: int(headers["Inference-Header-Content-Length"])])["inputs"]
    for tensor in tensors:
        del tensor["parameters"]
        tensor["data"] = inputs[tensor["name"]].ravel().tolist()
    path = f"/v2/models/{name}/infer"
    return http(path, json.dumps({"inputs": tensors}).encode(), {"Content-Type": "application/json"}), http(
        path, body, headers
    )


def http(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: a",
        f"Content-Length: {len(body)}",
        *(f"{k}: {v}" for k, v in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def certificate(folder: Path) -> list[Path]:
    """Certificate, key and token file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    cert, secret, token = (folder / name for name in ("cert.pem", "key.pem", "token"))
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    token.write_text("bench-token-of-the-bench\n")
    return [cert, secret, token]


def agent_servers(stack: ExitStack, folder: Path, path: Path, manifest: Manifest) -> list[Server]:
    """The agent, once the bundle is committed, started again with every kind of address."""
    first = overhead.start(stack, folder, path, manifest)
    first.process.terminate()
    first.process.wait()
    cert, key, token = certificate(folder)
    port, tls_port, sock = overhead.free_port(), overhead.free_port(), folder / "agent.sock"
    with (folder / "agent-2.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "edgekit", "agent", "run", "--state", folder / "board", "--profile", manifest.profile,
             "--http", f"unix:{sock}", "--http", f"127.0.0.1:{port}", "--http", f"0.0.0.0:{tls_port}",
             "--tls-cert", cert, "--tls-key", key, "--token-file", token], stdout=log, stderr=log,
        )  # fmt: skip
    stack.callback(process.wait)
    stack.callback(process.terminate)
    overhead.wait(lambda: overhead.is_ready(port, manifest.name))
    as_json, binary = requests(manifest, manifest.name)
    context = ssl.create_default_context(cafile=str(cert))
    bearer = f"\r\nAuthorization: Bearer {token.read_text().strip()}\r\n\r\n".encode()
    return [
        Server("agent, Unix socket, binary", load.unix(str(sock)), binary, process.pid),
        Server("agent, TCP, binary", load.tcp(port), binary, process.pid),
        Server(
            "agent, TLS, binary",
            load.tcp(tls_port, context=context),
            binary.replace(b"\r\n\r\n", bearer, 1),
            process.pid,
        ),
        Server("agent, TCP, JSON", load.tcp(port), as_json, process.pid),
    ]


def mlserver(stack: ExitStack, folder: Path, manifest: Manifest, model: Path) -> Server | None:
    """MLServer from PyPI in an environment of its own, serving the bundle's model file with its threads."""
    if manifest.engine.name != "onnxruntime":
        print("MLServer is left out: the bundle is none of ONNX Runtime's")
        return None
    place = Path(os.environ.get("EDGEKIT_BENCH_MLSERVER", folder / "mlserver"))
    if not (place / "bin" / "mlserver").is_file():
        venv.create(place, with_pip=True)
        subprocess.run([place / "bin" / "pip", "install", "--quiet", *MLSERVER], check=True)
    home = folder / "mlserver-home"
    home.mkdir()
    ports = [overhead.free_port() for _ in range(3)]
    settings = {
        "http_port": ports[0],
        "grpc_port": ports[1],
        "metrics_port": ports[2],
        "parallel_workers": 0,
        "debug": False,
    }
    (home / "settings.json").write_text(json.dumps(settings))
    described = {
        "name": manifest.name, "implementation": "mlserver_runtime.OnnxModel",
        "parameters": {"uri": str(model), "extra": {"threads": manifest.engine.threads}},
    }  # fmt: skip
    (home / "model-settings.json").write_text(json.dumps(described))
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    with (folder / "mlserver.log").open("w") as log:
        process = subprocess.Popen(
            [place / "bin" / "mlserver", "start", home], stdout=log, stderr=log, env=environment
        )
    stack.callback(process.wait)
    stack.callback(process.terminate)
    overhead.wait(lambda: overhead.is_ready(ports[0], manifest.name))
    return Server(
        "MLServer, TCP, JSON", load.tcp(ports[0]), requests(manifest, manifest.name)[0], process.pid
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-mlserver", action="store_true")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgekit-bench-") as temporary, ExitStack() as stack:
        folder = Path(temporary)
        path = chosen.bundle or overhead.build(folder, "--recipe", "onnxruntime/fp32")
        found = bundle.read(path)
        found.extract(folder / "bare")
        servers = agent_servers(stack, folder, path, found.manifest)
        if not chosen.no_mlserver:
            other = mlserver(stack, folder, found.manifest, folder / "bare" / found.manifest.engine.model)
            servers += [other] if other is not None else []
        bare = subprocess.Popen(
            [sys.executable, "-c", BARE, folder / "bare"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(bare.wait)
        stack.callback(bare.stdin.close)
        rows = measure(servers, bare, chosen.seconds, chosen.rounds)
        title = f"{found.manifest.title}, {found.manifest.recipe}, on {cpu_name()}, {os.cpu_count()} cores"
        show(title, rows)
        if chosen.json:
            chosen.json.write_text(
                json.dumps({"title": title, "when": time.strftime("%F"), "rows": rows}, indent=1)
            )


def measure(servers: list[Server], bare: "subprocess.Popen[str]", seconds: float, rounds: int) -> list[dict]:
    """A row for each server and number of clients: medians over the rounds."""
    cases = [(server, clients, 0) for server in servers for clients in CLIENTS]
    cases += [(server, 4, SLOW) for server in servers if "TCP" in server.name]
    seen: dict[tuple, list[dict]] = {}
    for _ in range(rounds):
        bare.stdin.write(f"{seconds}\n")
        bare.stdin.flush()
        times = load.Result(json.loads(bare.stdout.readline()), 0, seconds)
        seen.setdefault(("bare engine call", 1, 0), []).append(row_of(times, bare.pid))
        for server, clients, slow in cases:
            hostile = None
            if slow:
                port = server.connect().getpeername()[1]
                hostile = (load.tcp(port, source="127.0.0.9"), slow)
            done = load.run(server.connect, server.request, clients, seconds, hostile)
            seen.setdefault((server.name, clients, slow), []).append(row_of(done, server.pid))
    return [
        {"server": name, "clients": clients, "slow": slow, **{key: statistics.median(row[key] for row in found) for key in found[0]}}
        for (name, clients, slow), found in seen.items()
    ]  # fmt: skip


def row_of(result: load.Result, pid: int) -> dict:
    return {
        "p50_ms": result.quantile(0.5), "p99_ms": result.quantile(0.99), "per_s": result.rate, "failed": result.failed,
        "pss_mb": pss_mb(pid),
    }  # fmt: skip


def show(title: str, rows: list[dict]) -> None:
    print(title)
    print(f"{'':30}{'clients':>8}{'slow':>6}{'p50 ms':>9}{'p99 ms':>9}{'per s':>9}{'failed':>8}{'PSS MB':>8}")
    for row in rows:
        print(
            f"{row['server']:30}{row['clients']:8d}{row['slow']:6d}{row['p50_ms']:9.3f}{row['p99_ms']:9.3f}"
            f"{row['per_s']:9.0f}{row['failed']:8.0f}{row['pss_mb']:8.1f}"
        )


if __name__ == "__main__":
    main()
