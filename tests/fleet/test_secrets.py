"""Secrets stay where they belong: a run through everything, and then every place is searched for each of them."""

import base64
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from fleet_support import FakeDevice, Service, wait_until

from edgekit.wire.enrolment import EnrolmentFile
from fleet import api
from fleet.client.config import Access
from fleet.client.rest import Client

PASSWORD, OTHER_PASSWORD = "correct horse battery staple", "seven green bottles hanging"
PASSPHRASE = "a passphrase for the authority"
HOOK_SECRET, HOOK_PATH = "the-secret-that-signs-webhooks", "services/T0001/the-path-of-a-chat"
MAIL_PASSWORD = "the-password-of-the-mail-server"


@dataclass
class Seen:
    """Everything that came out, and every command line that was there. Commands run with --debug: a traceback tells more."""

    service: Service
    secrets: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    argv: set[str] = field(default_factory=set)

    def edgekit(self, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "edgekit", "--debug", "fleet", *words]
        environment = {**os.environ, "EDGEKIT_FLEET": str(self.service.state), **environment}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.look_at_processes()
        out, err = process.communicate(timeout=120)
        self.outputs[" ".join(words)] = out + err
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def look_at_processes(self) -> None:
        """What everybody on the machine can read of the others."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                self.argv.add(path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
            except OSError:
                continue

    def private_file(self, name: str, text: str) -> str:
        path = self.service.folder / name
        path.write_text(text + "\n")
        path.chmod(0o600)
        return str(path)


def toml_token(path: Path) -> str:
    [found] = re.findall(r'token = "([^"]+)"', path.read_text())
    return found


def key_bytes(pem: str) -> str:
    """Of a PEM file what only the private key has: an EC key (PKCS #8) ends with its public half."""
    body = "".join(line for line in pem.splitlines() if not line.startswith("-"))
    return body[52:84] if len(body) > 100 else body[-40:-4]


def everything(seen: Seen, log: Path) -> dict[str, str]:
    """Place → text, of all that others may come to see: outputs, logs, arguments, the database, public files."""
    with (seen.service.state / "fleet.db").open("rb") as stream:
        places = {"database": stream.read().decode("latin-1")}
    for extra in seen.service.state.glob("fleet.db-*"):
        places[extra.name] = extra.read_bytes().decode("latin-1")
    places |= {f"output of {words}": text for words, text in seen.outputs.items()}
    places |= {"argv": "\n".join(seen.argv), "log of the service": log.read_text(errors="replace")}
    allowed = {
        "client.toml",
        "order.key",
        "publisher.key",
        "ca.key",
        "server.key",
        "service.key",
        "online.key",
    }
    for path in seen.service.state.rglob("*"):
        if path.is_file() and path.name not in allowed and not path.name.startswith("fleet.db"):
            places[f"file {path.relative_to(seen.service.state)}"] = path.read_bytes().decode("latin-1")
    return places


def test_no_secret_of_a_whole_run_is_found_where_it_does_not_belong(service: Service) -> None:
    seen = Seen(service)
    log = service.folder / "service.log"
    passphrase = seen.private_file("passphrase", PASSPHRASE)
    home = seen.edgekit("init", str(service.state), "--inside-repository", "--ca-passphrase-file", passphrase)
    assert home.returncode == 0, home.stderr
    with log.open("w") as sink:
        command = service.command("-v", "--ca-passphrase-file", passphrase)
        service.process = subprocess.Popen(command, stdout=sink, stderr=sink, start_new_session=True)
    wait_until(lambda: "ready" in log.read_text(), "the service is up", timeout_s=60)
    run_through(seen)
    seen.look_at_processes()
    service.stop()

    state = service.state
    for name in ("order", "publisher", "ca", "service", "server", "online"):
        for path in state.rglob(f"{name}.key"):
            seen.secrets[f"{path.relative_to(state)}"] = key_bytes(path.read_text())
    seen.secrets |= {"password": PASSWORD, "other password": OTHER_PASSWORD, "passphrase": PASSPHRASE}
    places = everything(seen, log)
    assert len(places) > 20
    assert len(seen.secrets) >= 12
    for what, secret in seen.secrets.items():
        assert len(secret) >= 12
        for form in (secret, base64.b64encode(secret.encode()).decode().rstrip("=")):
            found = [where for where, text in places.items() if form in text]
            assert not found, f"{what} is in {found}"


def test_the_search_finds_what_it_is_to_find(service: Service) -> None:
    """The same search over a run that does leak turns red: it is not blind."""
    service.state.mkdir()
    seen = Seen(
        service, outputs={"user add": f"password: {PASSWORD}"}, argv={f"edgekit --token {PASSPHRASE}"}
    )
    (service.state / "fleet.db").write_bytes(b"SQLite\0" + OTHER_PASSWORD.encode())
    log = service.folder / "log"
    log.write_text(f"refused: {PASSWORD}")
    found = everything(seen, log)
    assert [where for where, text in found.items() if PASSWORD in text] == [
        "output of user add",
        "log of the service",
    ]
    assert [where for where, text in found.items() if PASSPHRASE in text] == ["argv"]
    assert [where for where, text in found.items() if OTHER_PASSWORD in text] == ["database"]


def run_through(seen: Seen) -> None:
    """Everything that makes or takes a secret, done right and done wrong."""
    service = seen.service
    seen.secrets["admin token"] = toml_token(service.state / "client.toml")
    tokens(seen)
    people(seen)
    devices(seen)
    targets(seen)
    for words in (("audit", "list"), ("audit", "verify"), ("status",)):
        done = seen.edgekit(*words)
        assert done.returncode == 0, done.stderr
    export = service.folder / "audit.jsonl"
    assert seen.edgekit("audit", "export", str(export)).returncode == 0
    assert seen.edgekit("audit", "verify", str(export)).returncode == 0
    seen.outputs["the audit log's export"] = export.read_text()
    damaged(seen, export)


def damaged(seen: Seen, export: Path) -> None:
    """An export that was tampered with is told from one that was not."""
    lines = export.read_text().splitlines()
    other = export.with_name("other.jsonl")
    for number, text in enumerate(("\n".join([*lines[:2], *lines[3:]]), "\n".join([lines[0], *lines[2:]]))):
        other.write_text(text + "\n")
        done = seen.edgekit("audit", "verify", str(other))
        assert "not whole" in done.stderr, number


def tokens(seen: Seen) -> None:
    file = seen.service.folder / "ci.toml"
    made = seen.edgekit("token", "add", "ci", "--role", "operator", "--expires", "1d", "--out", str(file))
    assert (made.returncode, file.stat().st_mode & 0o777) == (0, 0o600), made.stderr
    seen.secrets["token ci"] = toml_token(file)
    piped = seen.edgekit("token", "add", "pipe", "--role", "viewer", "--out", "-")
    # The one output that is meant to hold it: its reader is a pipe.
    seen.secrets["token pipe"] = seen.outputs.pop("token add pipe --role viewer --out -").strip()
    assert piped.stdout.strip() == seen.secrets["token pipe"]
    assert "operator" in seen.edgekit("--fleet", str(file), "whoami").stdout
    denied = seen.edgekit("--fleet", str(file), "token", "list")
    assert "needs the role admin" in denied.stderr
    assert seen.edgekit("token", "revoke", "ci").returncode == 0
    refused = seen.edgekit("--fleet", str(file), "devices")
    assert "was revoked" in refused.stderr
    assert "revoked" in seen.edgekit("token", "list").stdout


def people(seen: Seen) -> None:
    password = seen.private_file("password", PASSWORD)
    add = ("user", "add", "ann", "--role", "admin", "--scope", "site=lab")
    assert "give --password-file" in seen.edgekit(*add).stderr
    assert seen.edgekit(*add, "--password-file", password).returncode == 0
    assert "already" in seen.edgekit(*add, "--password-file", password).stderr
    changed = seen.edgekit("user", "passwd", "ann", EDGEKIT_FLEET_NEW_PASSWORD=OTHER_PASSWORD)
    assert changed.returncode == 0, changed.stderr
    Path(password).chmod(0o644)
    assert "chmod 600" in seen.edgekit("user", "passwd", "ann", "--password-file", password).stderr
    assert "ann" in seen.edgekit("user", "list").stdout
    url = f"http://127.0.0.1:{seen.service.http_port}"
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as browser:
        for given in (PASSWORD, OTHER_PASSWORD):
            [csrf] = re.findall(r'name="csrf" value="([0-9a-f]+)"', browser.get("/login").text)
            done = browser.post("/login", data={"csrf": csrf, "name": "ann", "password": given})
            seen.outputs[f"sign-in {done.status_code}"] = done.text
        assert done.status_code == 303
        seen.secrets["session"] = browser.cookies["edgekit"]
        seen.outputs["the page"] = browser.get("/").text
        # A password in the wrong place, a broken body: the answers do not repeat it.
        seen.outputs["wrong"] = browser.post("/api/v1/users", content=f'{{"name": "{PASSWORD}"').text
    client = seen.service.client()
    try:
        client.add_user(api.NewUser("bob", "short", "viewer"))
    except Exception as error:  # noqa: BLE001  # whatever it is, its text is searched
        seen.outputs["weak password"] = str(error)
    assert seen.edgekit("user", "remove", "ann").returncode == 0


def targets(seen: Seen) -> None:
    """Whom alerts are told, at addresses where nobody listens: what goes wrong is said without them."""
    seen.secrets |= {
        "webhook secret": HOOK_SECRET,
        "webhook address": HOOK_PATH,
        "mail password": MAIL_PASSWORD,
    }
    key = seen.private_file("hook.secret", HOOK_SECRET)
    url = seen.private_file("hook.url", f"http://127.0.0.1:9/{HOOK_PATH}")
    hook = ("alert-targets", "add", "hook", "webhook")
    assert "give --secret-file" in seen.edgekit(*hook, "--url-file", url).stderr
    assert (
        "only to this machine"
        in seen.edgekit(
            *hook, EDGEKIT_WEBHOOK_URL=f"http://there.example/{HOOK_PATH}", EDGEKIT_WEBHOOK_SECRET=HOOK_SECRET
        ).stderr
    )
    added = seen.edgekit(*hook, "--url-file", url, "--secret-file", key)
    assert added.returncode == 0, added.stderr
    mail = (
        "--server",
        "smtps://127.0.0.1:9",
        "--from",
        "a@example.org",
        "--to",
        "b@example.org",
        "--user",
        "fleet",
    )
    added = seen.edgekit("alert-targets", "add", "mail", "smtp", *mail, EDGEKIT_SMTP_PASSWORD=MAIL_PASSWORD)
    assert added.returncode == 0, added.stderr
    for name in ("hook", "mail"):
        assert "did not arrive: Connection refused" in seen.edgekit("alert-targets", "test", name).stdout
    assert "127.0.0.1:9" in seen.edgekit("alert-targets", "list").stdout
    assert seen.edgekit("alert-targets", "list", "--json").returncode == 0
    assert seen.edgekit("alert-targets", "remove", "hook").returncode == 0


def devices(seen: Seen) -> None:
    out = seen.service.folder / "roof-1.json"
    made = seen.edgekit("enroll", "roof-1", "--deployment", "digits", "--out", str(out))
    assert made.returncode == 0, made.stderr
    file = json.loads(out.read_text())
    seen.secrets["enrolment token"] = file["token"]
    import msgspec

    device = FakeDevice(msgspec.json.decode(out.read_bytes(), type=EnrolmentFile))
    device.enrol()
    seen.secrets["device credential"] = device.credential
    again = httpx.post(
        device.file.enrol_url, content=b'{"token": "' + file["token"].encode() + b'"}', trust_env=False
    )
    seen.outputs["enrolling wrongly"] = again.text
    wrong = Client(Access(f"http://127.0.0.1:{seen.service.http_port}", file["token"]))
    try:
        wrong.status()
    except Exception as error:  # noqa: BLE001  # whatever it is, its text is searched
        seen.outputs["a token of another kind"] = str(error)
    seen.outputs["artifact"] = device.fetch("0" * 64).text
