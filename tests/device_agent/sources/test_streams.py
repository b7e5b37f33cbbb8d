"""Cameras, films, RTSP streams and a microphone, with a model's side that can be slow."""

import io
import json
import os
import subprocess
import sys
import threading
import time
import wave
from pathlib import Path

import msgspec
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from rtsp_server import SIZE, Server  # after the line that makes it importable

from device_agent.agentfile import CameraSource, RtspSource
from device_agent.sources import camera as cameras
from device_agent.sources.ask import Refused, UnavailableError
from device_agent.sources.feed import Feed, Tally
from device_agent.sources.microphone import Windows, wav
from device_agent.sources.newest import Newest
from device_agent.sources.outbox import Outbox
from edgekit.errors import FeedError

cv2 = pytest.importorskip("cv2")


class Model:
    """Keeps what it was asked; the next answers can be another thing than an answer."""

    def __init__(self, takes_s=0.0):
        self.asked, self.says, self.takes_s = [], [], takes_s

    def ask(self, body, content_type):
        assert content_type == "application/x-npy"
        self.asked.append(np.load(io.BytesIO(body)))
        time.sleep(self.takes_s)
        said = self.says.pop(0) if self.says else msgspec.Raw(b"{}")
        if isinstance(said, Exception):
            raise said
        return said


@pytest.fixture
def make_feed(tmp_path):
    made = []

    def make(model):
        made.append(Feed("gate", "", model, Outbox(tmp_path / "backlog.db", ["lines"], 1 << 20), Tally()))
        return made[-1]

    yield make
    for feed in made:
        feed.outbox.close()


@pytest.fixture
def film(tmp_path):
    path = tmp_path / "film.avi"
    made = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), 50, (16, 8))
    for number in range(10):
        made.write(np.full((8, 16, 3), (10 * number, 100, 200), np.uint8))
    made.release()
    return CameraSource(name="gate", device=str(path), queue=10)


def kept(feed):
    return [json.loads(one.body) for one in feed.outbox.owed("lines", 99)]


def test_a_film_is_read_once_in_its_own_pace_red_first_and_ends(film, make_feed):
    model = Model()
    feed = make_feed(model)
    began = time.monotonic()
    cameras.Camera(film).run(feed)
    assert time.monotonic() - began > 0.15
    assert [frame.shape for frame in model.asked] == [(8, 16, 3)] * 10
    assert [tuple(frame[0, 0]) for frame in model.asked] == [(200, 100, 10 * number) for number in range(10)]
    assert [one["input"]["frame"] for one in kept(feed)] == list(range(1, 11))


def test_a_slow_model_gets_the_newest_frames_and_the_others_are_counted(film, make_feed):
    model = Model(takes_s=0.1)
    feed = make_feed(model)
    cameras.Camera(msgspec.structs.replace(film, queue=1, colour="grey")).run(feed)
    told = feed.tally.told(0)
    assert told.read == 10
    assert told.answered == len(model.asked) < 10
    assert told.dropped == 10 - told.answered
    assert model.asked[0].shape == (8, 16)
    # The last frame is never the one that goes.
    assert kept(feed)[-1]["input"]["frame"] == 10


def test_frames_for_which_there_is_no_model_are_dropped_and_refused_ones_told(film, make_feed):
    model = Model()
    model.says = [UnavailableError("no model"), Refused("input", "too small")]
    feed = make_feed(model)
    cameras.Camera(film).run(feed)
    told = feed.tally.told(0)
    assert (told.dropped, told.refused, told.answered) == (1, 1, 8)
    assert (kept(feed)[0]["error"], kept(feed)[0]["reason"]) == ("input", "too small")


def test_at_most_so_many_frames_a_second_are_read(film, make_feed):
    feed = make_feed(Model())
    cameras.Camera(msgspec.structs.replace(film, fps=10)).run(feed)
    assert feed.tally.told(0).read in (2, 3)


def test_a_camera_that_is_not_there_is_told(make_feed):
    with pytest.raises(FeedError, match="/dev/video250: cannot be opened"):
        cameras.Camera(CameraSource(name="gate", device=250)).run(make_feed(Model()))


def test_an_rtsp_stream_is_read_and_its_end_is_an_error(make_feed):
    server = Server(frames=6)
    try:
        model = Model()
        feed = make_feed(model)
        with pytest.raises(FeedError, match="gives no more frames"):
            cameras.Stream(RtspSource(name="gate", url=server.url, queue=6)).run(feed)
    finally:
        server.close()
    assert server.methods[:4] == ["OPTIONS", "DESCRIBE", "SETUP", "PLAY"]
    assert len(model.asked) >= 4
    assert {frame.shape for frame in model.asked} == {(SIZE, SIZE, 3)}
    values = [int(frame[0, 0, 0]) for frame in model.asked]
    assert values == sorted(set(values))


def test_a_stream_that_nobody_serves_is_told_without_its_password(make_feed, monkeypatch):
    monkeypatch.setattr(cameras, "OPEN_S", 1.0)
    spec = RtspSource(name="gate", url="rtsp://user:word@127.0.0.1:9/stream")
    with pytest.raises(FeedError) as caught:
        cameras.Stream(spec).run(make_feed(Model()))
    assert "127.0.0.1:9/stream: cannot be opened" in str(caught.value)
    assert "word" not in str(caught.value)


def test_the_newest_are_held_and_the_oldest_go():
    held = Newest(2)
    assert [held.put(number) for number in range(4)] == [0, 0, 1, 1]
    assert [held.take(0), held.take(0), held.take(0)] == [2, 3, None]
    threading.Timer(0.05, held.end).start()
    with pytest.raises(EOFError):
        held.take(10)
    held.end(FeedError("gone"))
    with pytest.raises(FeedError, match="gone"):
        held.take(0)


def test_windows_begin_every_hop_and_no_byte_is_skipped():
    cut = Windows(4, 2)
    assert cut.add(b"abc") == []
    assert cut.add(b"defg") == [b"abcd", b"cdef"]
    assert cut.add(b"h") == [b"efgh"]
    with wave.open(io.BytesIO(wav(b"\1\0\2\0", 2, 16000))) as sound:
        assert (sound.getnchannels(), sound.getframerate(), sound.getnframes()) == (2, 16000, 1)


LISTEN = """
import io, json, sys, wave
from pathlib import Path
import msgspec
from device_agent.agentfile import MicrophoneSource
from device_agent.sources.feed import Feed, StoppedError, Tally
from device_agent.sources.microphone import Microphone
from device_agent.sources.outbox import Outbox
from edgekit.errors import FeedError

class Model:
    heard = []
    def ask(self, body, content_type):
        assert content_type == "audio/wav"
        with wave.open(io.BytesIO(body)) as sound:
            self.heard.append([sound.getframerate(), sound.getnframes(), list(sound.readframes(4)[::2])])
        if len(self.heard) == 3:
            feed.stop()
        return msgspec.Raw(b"{}")

feed = Feed("mic", "", Model(), Outbox(Path(sys.argv[1]), ["lines"], 1 << 20), Tally())
try:
    Microphone(MicrophoneSource(name="mic", device=sys.argv[2], sample_rate=16000, window_s=0.5, queue=64)).run(feed)
except StoppedError:
    print(json.dumps([Model.heard, feed.tally.told(0).answered]))
except FeedError as error:
    print(json.dumps(str(error)))
"""


def listen(tmp_path, device):
    """A microphone that ALSA plays a file for: the samples 0, 1, … 7999 again and again."""
    pytest.importorskip("soundfile")
    try:
        import sounddevice  # noqa: F401  # whether PortAudio is there
    except (ImportError, OSError) as error:
        pytest.skip(f"no sounddevice with PortAudio: {error}")
    np.arange(8000, dtype="<i2").tofile(tmp_path / "sound.raw")
    (tmp_path / "asound.conf").write_text(f"""
pcm.!default {{ type plug slave.pcm "mic" }}
ctl.!default {{ type hw card 0 }}
pcm.mic {{ type file slave.pcm "silent" file "/dev/null" infile "{tmp_path}/sound.raw" format "raw" }}
pcm.silent {{ type null }}
""")
    done = subprocess.run(
        [sys.executable, "-c", LISTEN, tmp_path / "backlog.db", device],
        env={**os.environ, "ALSA_CONFIG_PATH": str(tmp_path / "asound.conf")},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_microphone_is_cut_into_windows(tmp_path):
    heard, answered = listen(tmp_path, "mic")
    assert answered == 3
    assert [one[:2] for one in heard] == [[16000, 8000]] * 3
    assert heard[0][2] == [0, 1, 2, 3]


def test_a_microphone_that_is_not_there_is_told(tmp_path):
    assert "the microphone cannot be opened: device 'none'" in listen(tmp_path, "none")
