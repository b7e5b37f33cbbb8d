"""agent.toml: what is read, and what is refused with the key and what would be right."""

from pathlib import Path

import pytest

from device_agent import agentfile, doctor
from device_agent.agentfile import CameraSource, FolderSource
from device_agent.budget import Limits
from device_agent.folder import StateFolder
from device_agent.sources import access, advice
from edgekit.errors import UsageError

FILE = '[[sink]]\nkind = "file"\nname = "lines"\npath = "out.jsonl"\n'
FOLDER = '[[source]]\nkind = "folder"\nname = "inbox"\npath = "in"\n'
MQTT = '[[source]]\nkind = "mqtt"\nname = "line"\ntopics = ["a"]\n'


@pytest.fixture
def refused(tmp_path):
    def why(text):
        (tmp_path / "agent.toml").write_text(text)
        with pytest.raises(UsageError) as caught:
            agentfile.read(tmp_path)
        told = str(caught.value)
        assert told.startswith(f"{tmp_path}/agent.toml: ")
        return told.removeprefix(f"{tmp_path}/agent.toml: ")

    return why


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[sorce]]", "sorce: unknown key; did you mean 'source'?"),
        ("source = 1", "source: write each as a table of its own, under [[source]]"),
        ("=", "no TOML: "),
        ('[[source]]\nkind = "foldr"', "source 1: kind: 'foldr' is none; known are folder, mqtt, camera, rtsp, microphone"),
        (FOLDER + FOLDER + FILE, "source 'inbox': there are two of that name"),
        (FOLDER, "source 'inbox': its answers go nowhere; add a [[sink]]"),
        (FOLDER + "sinks = []\n" + FILE, "source 'inbox': its answers go nowhere"),
        (FOLDER + 'sinks = ["line"]\n' + FILE, "source 'inbox': sinks: there is no sink 'line'; did you mean 'lines'?"),
        (FOLDER + "settle = 1\n" + FILE, "source 'inbox': settle: unknown key; did you mean 'settle_s'?"),
        (FOLDER + "settle_s = -1\n" + FILE, "source 'inbox': settle_s: Expected `float` >= 0.0"),
        (FOLDER + 'settle_s = "2"\n' + FILE, "source 'inbox': settle_s: Expected `float`, got `str`"),
        (FOLDER + 'deployment = "Ä"\n' + FILE, "source 'inbox': deployment: the name of a deployment"),
        ('[[source]]\nkind = "folder"\nname = "In Box"\npath = "a"', "source 'In Box': name: small letters, digits"),
        ('[[source]]\nkind = "folder"\nname = "a"', "source 'a': path: must be given"),
        (MQTT + 'broker = "tcp://b"\n' + FILE, "broker: 'tcp://b' is no mqtt or mqtts address; write e.g. mqtt://"),
        (MQTT + 'broker = "mqtt://b:99999"\n' + FILE, "broker: 'mqtt://b:99999' is no"),
        (MQTT + 'password_file = "p"\n' + FILE, "password_file: give the username"),
        (MQTT + 'ca_file = "p"\n' + FILE, "ca_file and cert_file mean something with mqtts:// only"),
        (MQTT + 'broker = "mqtts://b"\ncert_file = "p"\n' + FILE, "cert_file and key_file go together"),
        ('[[source]]\nkind = "rtsp"\nname = "a"\nurl = "http://b"\n' + FILE, "url: 'http://b' is no rtsp or rtsps address"),
        ('[[sink]]\nkind = "webhook"\nname = "a"\nurl = "ftp://b"', "sink 'a': url: 'ftp://b' is no http or https"),
        ('[[sink]]\nkind = "webhook"\nname = "a"\nurl = "http://u:p@b"', "no name and password in the address"),
        ('[[sink]]\nkind = "mqtt"\nname = "a"\ntopic = "x/#"', "sink 'a': topic: a topic to publish to"),
        ('[[sink]]\nkind = "mqtt"\nname = "a"\ntopic = "x/{name}"', "topic: 'x/{name}': known are {source} and {deployment}"),
        (
            '[[source]]\nkind = "microphone"\nname = "a"\nsample_rate = 16000\nhop_s = 2\n' + FILE,
            "hop_s: 2 is more than window_s (1)",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_key_and_what_would_be_right(refused, text, told):
    assert told in refused(text)


def test_paths_start_from_the_files_folder_and_sinks_default_to_all(tmp_path):
    (tmp_path / "agent.toml").write_text(
        FOLDER + '[[source]]\nkind = "camera"\nname = "film"\ndevice = "film.avi"\nsinks = ["lines"]\n'
        '[[source]]\nkind = "camera"\nname = "gate"\ndevice = 1\n'
        + FILE + '[[sink]]\nkind = "webhook"\nname = "hook"\nurl = "https://b/x"\nsecret_file = "secret"\n'
    )  # fmt: skip
    read = agentfile.read(tmp_path)
    inbox, film, gate = read.sources
    assert isinstance(inbox, FolderSource)
    assert inbox.path == str(tmp_path / "in")
    assert isinstance(film, CameraSource)
    assert film.device == str(tmp_path / "film.avi")
    assert gate.device == 1
    assert [sink.name for sink in read.sinks_of(inbox)] == ["lines", "hook"]
    assert [sink.name for sink in read.sinks_of(film)] == ["lines"]
    assert read.secrets == (tmp_path / "agent.toml", tmp_path / "secret")


def test_a_device_without_the_file_has_no_sources_and_a_chosen_one_must_be_there(tmp_path):
    assert agentfile.read(tmp_path).sources == ()
    with pytest.raises(UsageError, match="there is no such file"):
        agentfile.read(tmp_path, tmp_path / "other.toml")


def test_a_source_may_reach_just_what_is_named_for_it_and_its_sinks(tmp_path):
    read = agentfile.parse(
        FOLDER + 'sinks = ["lines"]\n'
        '[[source]]\nkind = "mqtt"\nname = "line"\ntopics = ["a"]\nbroker = "mqtts://b"\nusername = "u"\n'
        'password_file = "p"\nsinks = ["hook"]\n'
        + FILE + '[[sink]]\nkind = "webhook"\nname = "hook"\nurl = "https://b:8443/x"\nsecret_file = "secret"\n',
        tmp_path / "agent.toml",
    )  # fmt: skip
    inbox, line = read.sources
    own = tmp_path / "own"
    assert access.needed(inbox, read.sinks_of(inbox), own) == ((), (own, tmp_path / "in", tmp_path), ())
    reached = access.needed(line, read.sinks_of(line), own)
    assert reached == ((tmp_path / "p", tmp_path / "secret"), (own,), (8443, 8883))


def test_the_doctors_look_names_what_is_not_there(tmp_path):
    read = agentfile.parse(
        FOLDER + '[[source]]\nkind = "camera"\nname = "film"\ndevice = "film.avi"\n' + FILE.replace("out.jsonl", "no/out.jsonl")
        + '[[sink]]\nkind = "webhook"\nname = "hook"\nurl = "https://b/x"\nsecret_file = "secret"\n',
        tmp_path / "agent.toml",
    )  # fmt: skip
    told = [f"{one.who}: {one.what}" for one in advice.examine(read)]
    assert told == [
        f"source inbox: {tmp_path}/in: there is no such folder",
        f"source film: {tmp_path}/film.avi: there is no such device or file",
        f"sink lines: {tmp_path}/no: there is no such folder",
        f"sink hook: secret_file: {tmp_path}/secret cannot be read",
    ]
    (tmp_path / "in").mkdir()
    (tmp_path / "no").mkdir()
    (tmp_path / "film.avi").touch()
    (tmp_path / "secret").touch()
    assert list(advice.examine(read)) == []


def test_the_example_of_the_documents_is_read():
    text = (Path(__file__).parents[2] / "docs/sources.md").read_text()
    example = text.partition("```toml\n")[2].partition("```")[0]
    read = agentfile.parse(example, Path("/etc/edgekit/agent.toml"))
    assert [agentfile.kind_of(one) for one in read.sources] == ["folder", "mqtt", "camera"]
    assert [agentfile.kind_of(one) for one in read.sinks] == ["mqtt", "file", "webhook"]
    assert [one.name for one in read.sinks_of(read.sources[2])] == ["events"]


def test_the_doctor_tells_of_the_file(tmp_path):
    assert doctor._sources(StateFolder(tmp_path), None) == []
    (tmp_path / "agent.toml").write_text(FOLDER + FILE)
    good, bad = doctor._sources(StateFolder(tmp_path), None)
    assert (good.state, good.found) == ("good", f"{tmp_path}/agent.toml: 1 sources, 1 sinks")
    assert (bad.state, bad.found) == ("bad", f"source inbox: {tmp_path}/in: there is no such folder")
    (tmp_path / "agent.toml").write_text(FOLDER)
    (refused,) = doctor._sources(StateFolder(tmp_path), None)
    assert refused.state == "bad"
    assert "its answers go nowhere" in refused.found


def test_a_budget_of_the_link_is_read_and_a_wrong_one_refused(tmp_path):
    file = tmp_path / "agent.toml"
    assert agentfile.parse('[budget]\nper_day = "20MB"', file).budget == Limits(20_000_000, None)
    assert agentfile.parse("", file).budget == Limits()
    for text, told in (
        ('per_day = "20"', "write a size"),
        ("per_day = 20", "budget: per_day"),
        ('per_week = "1MB"', "budget: per_week: unknown key"),
    ):
        with pytest.raises(UsageError, match=told):
            agentfile.parse(f"[budget]\n{text}", file)
    with pytest.raises(UsageError, match="budget"):
        agentfile.parse('budget = "20MB"', file)
