"""A microphone as a source, through sounddevice (PortAudio).

Always true
 1. Sound is cut into windows of one length; each goes as a WAV of 16 bits, so that the agent checks its sample rate against
    the model's.
 2. Windows that the model has no time for go, the oldest first, counted; so do samples that PortAudio lost.
"""

import io
import threading
import time
import uuid
import wave
from typing import Any

from device_agent.agentfile import MicrophoneSource
from device_agent.sources.feed import Feed, Given
from device_agent.sources.newest import Newest
from edgekit.distribution import extra
from edgekit.errors import FeedError

LOOK_S = 0.2
SAMPLE_BYTES = 2
# A device that gives nothing for this long beyond a window is gone.
SILENT_S = 10.0


class Windows:
    """Cuts a stream of bytes into windows of `size` bytes, of which one begins every `hop` bytes. Pure."""

    def __init__(self, size: int, hop: int) -> None:
        self._size = size
        self._hop = hop
        self._held = bytearray()

    def add(self, data: bytes) -> list[bytes]:
        """The windows that became whole."""
        self._held += data
        found: list[bytes] = []
        while len(self._held) >= self._size:
            found.append(bytes(self._held[: self._size]))
            del self._held[: self._hop]
        return found


class Microphone:
    def __init__(self, spec: MicrophoneSource) -> None:
        self._spec = spec
        frame = spec.channels * SAMPLE_BYTES
        self._size = max(1, round(spec.window_s * spec.sample_rate)) * frame
        hop_s = spec.hop_s if spec.hop_s is not None else spec.window_s
        self._hop = max(1, round(hop_s * spec.sample_rate)) * frame

    def run(self, feed: Feed) -> None:
        """See `feed.Source`."""
        library = _sounddevice()
        windows: Newest[tuple[float, bytes]] = Newest(self._spec.queue)
        cut = Windows(self._size, self._hop)
        lock = threading.Lock()

        def came(data: Any, _frames: int, _time: Any, status: Any) -> None:
            """In PortAudio's thread."""
            with lock:
                if status.input_overflow:
                    feed.tally.count("dropped")
                for window in cut.add(bytes(data)):
                    feed.tally.count("read")
                    feed.tally.count("dropped", windows.put((time.time(), window)))

        try:
            stream = library.RawInputStream(
                samplerate=self._spec.sample_rate, device=self._spec.device, channels=self._spec.channels,
                dtype="int16", callback=came,
            )  # fmt: skip
        except (library.PortAudioError, ValueError) as error:
            named = "the default device" if self._spec.device is None else f"device {self._spec.device!r}"
            raise FeedError(
                f"the microphone cannot be opened: {named} ({error}); see: python -m sounddevice"
            ) from error
        with stream:
            self._read(stream, windows, feed)

    def _read(self, stream: Any, windows: Newest[tuple[float, bytes]], feed: Feed) -> None:
        last = time.monotonic()
        while True:
            window = windows.take(LOOK_S)
            feed.pause(0)
            if window is not None:
                last = time.monotonic()
                self._answer(*window, feed)
            elif not stream.active or time.monotonic() - last > SILENT_S + self._spec.window_s:
                raise FeedError("the microphone gives no sound any more")

    def _answer(self, at: float, window: bytes, feed: Feed) -> None:
        about = {"at": round(at, 3), "seconds": round(self._spec.window_s, 3)}
        body = wav(window, self._spec.channels, self._spec.sample_rate)
        given = Given(uuid.uuid4().hex, "audio/wav", body, about)
        found = feed.answer_now(given)
        if found is not None:
            feed.keep(given, found, makes_room=True)


def wav(samples: bytes, channels: int, sample_rate: int) -> bytes:
    """16-bit samples, channels interleaved, as a WAV file."""
    stream = io.BytesIO()
    with wave.open(stream, "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(SAMPLE_BYTES)
        sound.setframerate(sample_rate)
        sound.writeframes(samples)
    return stream.getvalue()


def _sounddevice() -> Any:
    """Raises: FeedError."""
    try:
        import sounddevice
    except ImportError as error:
        raise FeedError(f"sounddevice is not installed here: {extra('agent', 'microphone')}") from error
    except OSError as error:
        raise FeedError(
            f"PortAudio is not installed here ({error}); on Debian: apt install libportaudio2"
        ) from error
    return sounddevice
