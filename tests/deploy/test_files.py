"""deploy/: what a container engine, systemd and a shell would refuse or run unsafely is found here first."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import composed
import pytest
from composed import FOLDER, ROOT

UNITS = sorted((ROOT / "deploy" / "systemd").iterdir())
SERVICES = [unit for unit in UNITS if unit.suffix == ".service"]
CONTAINERS = sorted((ROOT / "deploy" / "container").iterdir())
# The most exposure of a service, in tenths, as `systemd-analyze security` counts it: 0 to 100.
EXPOSURE = {"edgekit-fleet.service": 15, "edgekit-agent.service": 26, "edgekit-crl.service": 20}


def unit(path: Path) -> dict[str, list[tuple[str, str]]]:
    """Sections, with repeated keys."""
    sections: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in path.read_text().splitlines():
        if line.startswith("["):
            name = line.strip("[]")
            sections[name] = []
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, f"{path.name}: {line}"
            sections[name].append((key, value))
    return sections


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return composed.load()["services"]


# -- compose -----------------------------------------------------------------------------------------------------------


def test_the_compose_files_follow_the_schema_of_the_specification(tmp_path: Path) -> None:
    pytest.importorskip("check_jsonschema")
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    files = sorted(FOLDER.glob("*.yaml"))
    assert [file.name for file in files] == ["agent.yaml", "compose.yaml"]
    done = subprocess.run([*check, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    damaged = tmp_path / "compose.yaml"
    damaged.write_text((FOLDER / "compose.yaml").read_text().replace("read_only:", "readonly:"))
    assert subprocess.run([*check, damaged], capture_output=True, check=False).returncode == 1


def test_every_container_is_without_root_rights_or_a_root_that_can_be_written(
    services: dict[str, Any],
) -> None:
    assert set(services) == {"init", "broker-config", "fleet", "mosquitto", "postgres"}
    agents = composed.load("agent.yaml")["services"]
    assert set(agents) == {"agent"}
    for name, service in {**services, **agents}.items():
        assert service["user"].startswith("${EDGEKIT_USER:?"), name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "cap_add", "pid", "devices"} & service.keys(), name
        # The agent serves on its board's own loopback address.
        assert service.get("network_mode") == ("host" if name == "agent" else None)


def test_only_what_devices_reach_is_open_to_the_network(services: dict[str, Any]) -> None:
    assert {name for name, service in services.items() if "ports" in service} == {"fleet", "mosquitto"}


def test_no_secret_stands_in_the_compose_file(services: dict[str, Any]) -> None:
    for name, service in services.items():
        for key, value in service.get("environment", {}).items():
            if re.search("PASS|SECRET|TOKEN|KEY", key):
                assert value.startswith("/run/secrets/"), (name, key)
    named = {secret for service in services.values() for secret in service.get("secrets", [])}
    assert named == composed.load()["secrets"].keys()
    ignored = (FOLDER / ".gitignore").read_text().split()
    assert {"/secrets/", "/state/", "/.env"} <= set(ignored)


def test_the_example_names_every_variable_that_the_compose_file_requires() -> None:
    text = (FOLDER / "compose.yaml").read_text()
    required = set(re.findall(r"\$\{(\w+):\?", text))
    assert required == {"EDGEKIT_HOST", "EDGEKIT_USER"}
    assert required == set(re.findall(r"^(\w+)=", (FOLDER / "example.env").read_text(), re.MULTILINE))


def test_a_required_variable_that_is_missing_is_noticed() -> None:
    with pytest.raises(AssertionError, match="EDGEKIT_HOST is required"):
        composed.filled("${EDGEKIT_HOST:?the name}", {})
    assert composed.filled("${A:-b}:${C}", {"C": "d"}) == "b:d"


# -- container files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", CONTAINERS, ids=lambda file: file.name)
def test_a_container_file_ends_as_nobody_and_fetches_by_pip_only(file: Path) -> None:
    text = re.sub(r"\\\n\s*", " ", file.read_text())
    steps = [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line and not line.startswith("#")]
    users = [value for word, value in steps if word == "USER"]
    assert users[-1] == "65532:65532"
    assert not [value for word, value in steps if word == "ADD"]
    for word, value in steps:
        if word == "RUN":
            assert not re.search(r"curl|wget|git |https?:", value), value
            for install in re.findall(r"pip install[^&]*", value):
                assert "--constraint constraints.txt" in install
    assert [word for word, _ in steps].index("USER") < [word for word, _ in steps].index("ENTRYPOINT")
    # One file for every architecture: neither base nor steps name one.
    assert not re.search(
        r"amd64|arm64|x86_64|aarch64|armv7", "".join(f"{word} {value}" for word, value in steps)
    )


def test_an_agent_in_a_container_is_asked_how_it_is_where_it_serves() -> None:
    """The image's own check and the compose file's are one, and what it runs by names options that there are."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / "deploy/container/agent.Containerfile").read_text())
    (check,) = re.findall(r"^HEALTHCHECK .*CMD (\[.*\])$", text, re.MULTILINE)
    agent = composed.load("agent.yaml")["services"]["agent"]
    kind, *words = (composed.filled(word, {}) for word in agent["healthcheck"]["test"])
    assert (kind, words) == ("CMD", json.loads(check))
    command = [composed.filled(word, {}) for word in agent["command"]]
    assert command[command.index("--http") + 1] in words[-1]
    mounted = {volume.split(":")[1] for volume in agent["volumes"]} | {
        f"/run/secrets/{name}" for name in agent["secrets"]
    }
    assert mounted == {"/state", command[command.index("--enrolment") + 1]}
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)
    assert json.loads(entry)[-1] == "/state"


@pytest.mark.parametrize("file", CONTAINERS, ids=lambda file: file.name)
def test_a_container_file_copies_all_that_the_package_is_made_of_and_no_more(file: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    read = {"pyproject.toml", "README.md", "LICENSE", "constraints.txt"}
    copied: set[str] = set()
    for line in file.read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            *sources, _ = line.split()[1:]
            copied |= set(sources)
    assert copied == packages | read
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    assert kept == copied
    extras = set(project["project"]["optional-dependencies"])
    (asked,) = re.findall(r"\.\[([^\]]+)\]", file.read_text())
    assert set(asked.replace("${ENGINE}", "onnxruntime").split(",")) <= extras


# -- systemd ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as on a machine where the programs are."""
    for path in UNITS:
        text = re.sub(r"(?<=ExecStart=)\S+", "/bin/true", path.read_text())
        (tmp_path / path.name).write_text(text)
    return tmp_path


needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


@needs_systemd
def test_systemd_finds_nothing_wrong_with_the_units(installed: Path) -> None:
    def verify() -> str:
        words = ["systemd-analyze", "verify", "--man=no", *sorted(map(str, installed.iterdir()))]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        return done.stderr if done.stderr or done.returncode == 0 else "failed without a word"

    assert verify() == ""
    fleet = installed / "edgekit-fleet.service"
    fleet.write_text(fleet.read_text().replace("ProtectHome=", "ProtectHouse="))
    assert "ProtectHouse" in verify()


@needs_systemd
@pytest.mark.parametrize("name", EXPOSURE)
def test_systemd_counts_a_service_as_well_confined(installed: Path, name: str) -> None:
    def is_confined() -> bool:
        threshold = f"--threshold={EXPOSURE[name]}"
        words = ["systemd-analyze", "security", "--offline=true", threshold, str(installed / name)]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    assert is_confined()
    text = (installed / name).read_text()
    (installed / name).write_text(
        re.sub("^(Protect|Restrict|System|Capab|NoNew).*$", "", text, flags=re.MULTILINE)
    )
    assert not is_confined()


@pytest.mark.parametrize("path", SERVICES, ids=lambda path: path.name)
def test_a_service_runs_as_a_user_of_its_own(path: Path) -> None:
    service = dict(unit(path)["Service"])
    assert service["User"] not in ("", "root")
    assert service["NoNewPrivileges"] == "yes"
    assert service["ProtectSystem"] == "strict"


def test_a_service_is_asked_for_commands_that_there_are() -> None:
    asked = 0
    for path in SERVICES:
        program, *words = dict(unit(path)["Service"])["ExecStart"].split()
        if program.endswith("/edgekit"):
            group = words[: next(i for i, word in enumerate(words) if word.startswith("-"))]
            command = [sys.executable, "-m", "edgekit", *group, "--help"]
            told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for option in (word for word in words if word.startswith("--")):
                assert option in told, (path.name, option)
            asked += 1
    assert asked == 2


# -- scripts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["deploy/compose/mosquitto.sh", "deploy/mosquitto/edgekit-crl"])
def test_a_script_is_plain_shell_and_executable(path: str) -> None:
    script = ROOT / path
    assert script.read_text().startswith("#!/bin/sh\n")
    assert script.stat().st_mode & 0o111
    assert subprocess.run(["/bin/sh", "-n", script], check=False).returncode == 0
