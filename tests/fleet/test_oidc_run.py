"""One run over real processes: a service with a provider in `fleet.toml`, a person's terminal, and where the secrets went."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from fleet_support import Service
from oidc_provider import CLIENT, SECRET, OpenIdProvider

from fleet.client.login_cli import _Listener


def configure(service: Service, provider: OpenIdProvider) -> None:
    init = [sys.executable, "-m", "edgekit", "fleet", "init", str(service.state), "--inside-repository"]
    subprocess.run(init, check=True, capture_output=True)
    secret = service.state / "oidc.secret"
    secret.write_text(SECRET + "\n")
    secret.chmod(0o600)
    with (service.state / "fleet.toml").open("a") as stream:
        stream.write(
            f'\n[oidc]\nissuer = "{provider.issuer}"\nclient_id = "{CLIENT}"\nclient_secret_file = "oidc.secret"\n'
            '[[oidc.grants]]\ngroup = "heads"\nrole = "admin"\n'
        )


def terminal(service: Service, *words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "edgekit", "--debug", "fleet", *words]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EDGEKIT_FLEET")}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=service.folder,
    )


@pytest.mark.proof
def test_a_person_signs_in_at_a_terminal_through_the_provider_and_no_secret_is_left_behind(
    service: Service,
) -> None:
    provider = OpenIdProvider(time.time, {"sub": "s-1", "preferred_username": "ann", "groups": ["heads"]})
    configure(service, provider)
    service.more = ("-v",)
    service.start()
    file = service.folder / "me.toml"
    login = terminal(
        service, "login", "me.toml", "--url", f"http://127.0.0.1:{service.http_port}", "--no-browser"
    )
    assert login.stderr is not None
    told = [login.stderr.readline() for _ in range(3)]
    address = told[1].strip()
    with httpx.Client(trust_env=False, follow_redirects=True, timeout=30) as browser:
        form = browser.get(address)
        [there] = re.findall(r'href="(/login/oidc[^"]*)"', form.text)
        page = browser.get(f"http://127.0.0.1:{service.http_port}{there}")
        assert "act as <b>ann</b> (admin)" in page.text
        [mark] = re.findall(r"<b>([0-9a-f]{6})</b>", page.text)
        assert mark in told[2]
        fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page.text))
        port = int(parse_qs(urlsplit(address).query)["port"][0])
        # Somebody else on this machine, who does not know the state, only gets told off.
        stranger = httpx.get(f"http://127.0.0.1:{port}/?code=x&state=y", trust_env=False)
        assert stranger.status_code == 404
        done = browser.post(f"http://127.0.0.1:{service.http_port}/login/terminal", data=fields)
        assert "Go on at the terminal" in done.text
        cookies = [value for _, value in browser.cookies.items()]
    out, err = login.communicate(timeout=60)
    assert (login.returncode, file.stat().st_mode & 0o777) == (0, 0o600), err
    assert "you are ann until" in out
    outputs, answers = [out, *told, err], []
    for words in (("--fleet", "me.toml", "user", "list", "--json"), ("--fleet", "me.toml", "audit", "list")):
        asked = terminal(service, *words)
        shown, complaints = asked.communicate(timeout=60)
        assert asked.returncode == 0, complaints
        answers.append(shown)
        outputs += [shown, complaints]
    assert [(one["name"], one["kind"]) for one in json.loads(answers[0])] == [("ann", "oidc")]
    assert "user.add" in answers[1]
    [token] = re.findall(r'token = "(ekp_[^"]+)"', file.read_text())
    ended = terminal(service, "logout", "me.toml")
    assert ended.wait(60) == 0
    service.stop()
    provider.close()
    assert service.process is not None
    assert service.process.stdout is not None
    places = {f"output {number}": text for number, text in enumerate(outputs)}
    places["log of the service"] = service.process.stdout.read()
    assert "HTTP Request" in places["log of the service"]  # it is as talkative as it can be
    for path in service.state.glob("fleet.db*"):
        places[path.name] = path.read_bytes().decode("latin-1")
    for secret in (SECRET, token, *cookies):
        assert [where for where, text in places.items() if secret in text] == []


def test_a_terminal_that_nobody_answers_gives_up_in_a_sentence() -> None:
    from edgekit.errors import AuthError

    listener = _Listener("state")
    try:
        with pytest.raises(AuthError, match="nobody allowed it in the browser"):
            listener.wait(0.0)
    finally:
        listener.server_close()


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        (None, (), "give --url"),
        ('url = "http://127.0.0.1:1"\ntoken = "ekt_x"\n', (), "a machine's token"),
        (None, ("--url", "http://fleet.example"), "in the clear"),
    ],
)
def test_a_sign_in_that_cannot_work_says_why(
    tmp_path: Path, text: str | None, words: tuple[str, ...], said: str
) -> None:
    from click.testing import CliRunner

    from fleet.client.login_cli import login

    file = tmp_path / "me.toml"
    if text:
        file.write_text(text)
    done = CliRunner().invoke(login, [str(file), *words])
    assert done.exit_code != 0
    assert said in str(done.exception)
