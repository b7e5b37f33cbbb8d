"""A webhook as a sink: what counts as taken, what is tried again, and what is never done."""

import base64
import hashlib
import hmac
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from device_agent.agentfile import WebhookSink
from device_agent.sinks.delivery import Taken
from device_agent.sinks.webhook import Webhook
from device_agent.sources.outbox import Owed
from edgekit.errors import FeedError


class Receiver(HTTPServer):
    """Says what it is told to, else 204; keeps what came."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.says, self.came = [], []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        self.server.came.append(
            (self.path, dict(self.headers), self.rfile.read(int(self.headers["Content-Length"])))
        )
        status = self.server.says.pop(0) if self.server.says else 204
        self.send_response(status)
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def make_hook(receiver):
    made = []

    def make(**more):
        url = f"http://127.0.0.1:{receiver.server_port}/hook?site=3"
        made.append(Webhook(WebhookSink(**{"name": "hook", "url": url} | more)))
        return made[-1]

    yield make
    for one in made:
        one.close()


ANSWERS = [Owed(number, f"id-{number}", b'{"n": %d}' % number) for number in range(3)]


def test_each_answer_is_a_post_with_its_id(make_hook, receiver):
    assert make_hook().deliver(ANSWERS) == Taken((0, 1, 2))
    assert [path for path, *_ in receiver.came] == ["/hook?site=3"] * 3
    assert [headers["webhook-id"] for _, headers, _ in receiver.came] == ["id-0", "id-1", "id-2"]
    assert [body for *_, body in receiver.came] == [one.body for one in ANSWERS]
    assert "webhook-signature" not in receiver.came[0][1]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(make_hook, receiver, status):
    receiver.says = [status]
    with pytest.raises(FeedError, match="redirects are not followed"):
        make_hook().deliver(ANSWERS)
    assert [path for path, *_ in receiver.came] == ["/hook?site=3"]


@pytest.mark.parametrize("status", [401, 403, 404, 408, 429, 500, 503])
def test_what_does_not_judge_the_answer_is_tried_again(make_hook, receiver, status):
    receiver.says = [status]
    hook = make_hook()
    with pytest.raises(FeedError, match=f"answered with {status}"):
        hook.deliver(ANSWERS)
    assert hook.deliver(ANSWERS) == Taken((0, 1, 2))


def test_what_went_well_before_a_failure_is_told_and_what_is_refused_for_good_goes(make_hook, receiver):
    receiver.says = [204, 422, 503]
    assert make_hook().deliver(ANSWERS) == Taken((0,), (1,))


def test_nobody_there_is_told(make_hook, tools):
    hook = make_hook(url=f"http://127.0.0.1:{tools.free_port()}/")
    with pytest.raises(FeedError, match="refused"):
        hook.deliver(ANSWERS)


@pytest.mark.parametrize(
    ("secret", "key"),
    [
        ("a-secret-of-16-characters\n", b"a-secret-of-16-characters"),
        ("whsec_" + base64.b64encode(b"sixteen bytes ok").decode(), b"sixteen bytes ok"),
    ],
)
def test_it_is_signed_over_id_time_and_body(make_hook, receiver, tmp_path, secret, key):
    (tmp_path / "secret").write_text(secret)
    make_hook(secret_file=str(tmp_path / "secret")).deliver(ANSWERS[:1])
    _, headers, body = receiver.came[0]
    signed = f"id-0.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"


@pytest.mark.parametrize(
    ("secret", "told"), [("short", "at least 16"), ("whsec_!!!!!!!!!!!!!!!!", "base64"), (None, "No such")]
)
def test_a_secret_that_is_none_sends_nothing(make_hook, receiver, tmp_path, secret, told):
    if secret is not None:
        (tmp_path / "secret").write_text(secret)
    with pytest.raises(FeedError, match=told):
        make_hook(secret_file=str(tmp_path / "secret")).deliver(ANSWERS)
    assert receiver.came == []
