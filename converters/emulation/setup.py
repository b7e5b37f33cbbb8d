"""What `edgekit emulator setup` fetches: qemu's user mode, an arm64 Python of Debian, and arm64 wheels.

Always true
 1. Nothing here is fetched unless the person asks for it, and only the sources that the machine's apt and pip are
    set up with are used.
 2. No root is needed: apt works in folders of its own, and nothing is installed into the system.
 3. An emulator is whole or absent: it is put together beside its place, tried, and then renamed.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import msgspec

from converters.emulation.machine import FORMAT, META, Machine, Meta
from converters.keep.artifacts import default_root
from converters.recipes import facts
from edgekit.errors import EdgeKitError, ToolFailedError

# What `edgekit` itself imports on the way to an engine, and the agent beside it: a whole agent runs there, too.
BASE = ("numpy>=1.26", "msgspec>=0.19", "packaging>=24")
AGENT = (
    "click>=8.1",
    "rich>=13.7",
    "cryptography>=44",
    "httptools>=0.6",
    "paho-mqtt>=2.1",
    "securesystemslib>=1.3,<2",
    "tuf>=7,<8",
)
QEMU_PACKAGES = ("qemu-user-static", "qemu-user")
QEMU_PROGRAMS = ("qemu-aarch64-static", "qemu-aarch64")
# libstdc++ and OpenMP are what the engines' wheels link to beside the C library.
USERLAND = ("python3", "libstdc++6", "libgomp1")
# glibc versions whose wheels Debian 12 and later can load.
_GLIBC = range(17, 37)
TIMEOUT_S = 600
Tell = Callable[[str], None]


def home() -> Path:
    """Where the emulator lies in the user's cache."""
    return default_root().parent / "emulator"


def installed() -> Machine | None:
    """The emulator that is set up, or None (also where an older EdgeKit left one that this one cannot use)."""
    meta = home() / META
    if not meta.is_file():
        return None
    try:
        found = msgspec.json.decode(meta.read_bytes(), type=Meta)
    except msgspec.DecodeError:
        return None
    machine = Machine(home(), found)
    return machine if found.format == FORMAT and machine.qemu.is_file() else None


def _emulated() -> list[str]:
    """Engines that run under emulation."""
    return [known.name for known in facts.own() if known.emulated]


def remove() -> bool:
    """Delete it; whether there was one."""
    if not home().exists():
        return False
    shutil.rmtree(home())
    return True


def setup(tell: Tell) -> Machine:
    """Fetch everything and try it, replacing what was there. Raises: ToolFailedError."""
    home().parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".emulator-", dir=home().parent))
    try:
        apt = _Apt(part / "apt")
        tell("reading the package lists for arm64")
        apt.update()
        qemu = _qemu(apt, part, tell)
        tell("fetching an arm64 Python")
        root = part / "root"
        root.mkdir()
        for package in apt.with_dependencies(USERLAND):
            _run(["dpkg-deb", "-x", str(package), str(root)], "unpacking a Debian package")
        python = next(iter(sorted(root.glob("usr/bin/python3.[0-9]*"))), None)
        if python is None:
            raise ToolFailedError(f"Debian's {USERLAND[0]} brought no /usr/bin/python3.*")
        version = python.name.removeprefix("python")
        tell(f"fetching arm64 wheels for Python {version}")
        _wheels(part / "site", version)
        shutil.rmtree(part / "apt")
        packages = {entry.name: entry.version for entry in metadata.distributions(path=[str(part / "site")])}
        meta = Meta(FORMAT, str(qemu), "", version, packages)
        tell("trying the engines under emulation")
        meta = msgspec.structs.replace(meta, qemu_version=Machine(part, meta).tried(_emulated()))
        (part / META).write_bytes(msgspec.json.format(msgspec.json.encode(meta)))
        remove()
        part.rename(home())
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Machine(home(), meta)


def _qemu(apt: "_Apt", part: Path, tell: Tell) -> Path:
    """The machine's own program, or Debian's in `part`; a path inside `part` is kept relative."""
    for name in QEMU_PROGRAMS:
        if found := shutil.which(name):
            return Path(found)
    tell("fetching qemu's user mode")
    failed: list[str] = []
    for package in QEMU_PACKAGES:
        try:
            archive = apt.package(package)
        except ToolFailedError as error:
            failed.append(str(error))
            continue
        with subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE
        ) as unpacked:
            with tarfile.open(fileobj=unpacked.stdout, mode="r|") as members:
                for member in members:
                    name = Path(member.name).name
                    if name in QEMU_PROGRAMS and member.isfile():
                        content = members.extractfile(member)
                        assert content is not None
                        (part / name).write_bytes(content.read())
                        (part / name).chmod(0o755)
            unpacked.kill()
        for name in QEMU_PROGRAMS:
            if (part / name).is_file():
                return Path(name)
        failed.append(f"{package} holds none of {', '.join(QEMU_PROGRAMS)}")
    raise ToolFailedError(
        f"qemu's user mode cannot be had ({'; '.join(failed)}); install a package with qemu-aarch64-static"
        " (Debian: apt-get install qemu-user-static), then run edgekit emulator setup again"
    )


class _Apt:
    """apt with the machine's sources and keys, but lists, caches and a (blank) dpkg state of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise ToolFailedError(
                "apt-get and dpkg-deb are needed to fetch an arm64 Python, and are not here; use a Debian (or"
                " derived) machine or container to emulate ARM"
            )
        for inside in ("state/lists/partial", "cache/archives/partial"):
            (folder / inside).mkdir(parents=True)
        (folder / "state/status").touch()
        native = _run(["dpkg", "--print-architecture"], "asking for the architecture").strip()
        self.native = native
        # Post-Invoke hooks of the system look after the system's folders, which are not touched here.
        (folder / "apt.conf").write_text(
            "#clear APT::Update::Post-Invoke;\n"
            "#clear APT::Update::Post-Invoke-Success;\n"
            "#clear APT::Architectures;\n"
            f'APT::Architectures {{ "arm64"; "{native}"; }};\n'
            'APT::Architecture "arm64";\n'
            'APT::Sandbox::User "";\n'
            'APT::Keep-Downloaded-Packages "true";\n'
            'APT::Install-Recommends "false";\n'
            'Debug::NoLocking "true";\n'
            f'Dir::State "{folder}/state";\n'
            f'Dir::State::status "{folder}/state/status";\n'
            f'Dir::Cache "{folder}/cache";\n',
            encoding="utf-8",
        )

    def update(self) -> None:
        self._apt(["update"], "reading apt's package lists for arm64")

    def package(self, name: str) -> Path:
        """One package for this machine's own architecture. Raises: ToolFailedError."""
        self._apt(["download", f"{name}:{self.native}"], f"fetching {name}")
        return next(self.folder.glob(f"{name}_*.deb"))

    def with_dependencies(self, names: Sequence[str]) -> list[Path]:
        """arm64 packages with all that they need. Raises: ToolFailedError."""
        self._apt(["install", "--yes", "--download-only", *names], f"fetching {', '.join(names)} for arm64")
        return sorted((self.folder / "cache/archives").glob("*.deb"))

    def _apt(self, words: Sequence[str], doing: str) -> None:
        _run(["apt-get", "--quiet", "-c", str(self.folder / "apt.conf"), *words], doing, self.folder)


def _wheels(target: Path, python: str) -> None:
    """The machine's own package index, through uv where there is one, else through pip."""
    wanted = [*BASE, *AGENT, *(known.emulated for known in facts.own() if known.emulated)]
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.is_file() else shutil.which("uv")
    if uv is not None:
        platform = ["--python-platform", f"aarch64-manylinux_2_{_GLIBC[-1]}"]
        words = [uv, "pip", "install", "--quiet", "--only-binary", ":all:", *platform]
    else:
        platforms = [*(f"manylinux_2_{minor}_aarch64" for minor in reversed(_GLIBC)), "manylinux2014_aarch64"]
        words = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--only-binary",
            ":all:",
            "--implementation",
            "cp",
        ]
        words += [word for platform in platforms for word in ("--platform", platform)]
    _run([*words, "--python-version", python, "--target", str(target), *wanted], "fetching arm64 wheels")


def _run(words: Sequence[str], doing: str, folder: Path | None = None) -> str:
    """Raises: ToolFailedError with the end of what the program said."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, timeout=TIMEOUT_S, cwd=folder, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolFailedError(f"{doing} failed: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-600:]
        raise ToolFailedError(f"{doing} failed ({Path(words[0]).name}): {said}")
    return done.stdout


def why_absent() -> EdgeKitError:
    """The error of a command that needs an emulator where there is none."""
    return ToolFailedError("the ARM emulator is not set up; run: edgekit emulator setup")
