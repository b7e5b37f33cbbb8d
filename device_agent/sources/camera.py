"""Cameras, video files and RTSP streams as sources, through OpenCV.

Always true
 1. A thread takes every frame as it comes; the model gets the newest, and what it has no time for goes, counted. So the
    model never sees the past, and a frame is read at most once.
 2. A camera that stops giving frames is an error, which starts the process again. A video file ends.
"""

import io
import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from device_agent.agentfile import CameraSource, RtspSource
from device_agent.sources.feed import Feed, Given
from device_agent.sources.newest import Newest
from edgekit.distribution import extra
from edgekit.errors import FeedError

LOOK_S = 0.2
# How long a stream may take to open, and to give its next frame.
OPEN_S, FRAME_S = 10.0, 10.0


class _Frame(NamedTuple):
    """`pixels` as OpenCV gives them: uint8 (height, width, 3), blue first."""

    number: int
    at: float
    pixels: Any


class Capture:
    """Frames of whatever `open_` opens. `pace` is how many a second a file is played at; 0 for what has its own pace."""

    def __init__(self, spec: CameraSource | RtspSource, what: str, open_: Callable[[Any], Any]) -> None:
        self._spec = spec
        self._what = what
        self._open = open_
        self._is_file = isinstance(spec, CameraSource) and Path(str(spec.device)).is_file()

    def run(self, feed: Feed) -> None:
        """See `feed.Source`."""
        cv2 = _opencv()
        frames: Newest[_Frame] = Newest(self._spec.queue)
        opened = self._opened(cv2)
        thread = threading.Thread(
            target=self._grab, args=(cv2, opened, frames, feed), name="frames", daemon=True
        )
        thread.start()
        try:
            while True:
                try:
                    frame = frames.take(LOOK_S)
                except EOFError:
                    return
                feed.pause(0)
                if frame is not None:
                    self._answer(cv2, frame, feed)
        finally:
            feed.stop()
            thread.join(FRAME_S)

    def _opened(self, cv2: Any) -> Any:
        """Raises: FeedError."""
        opened = self._open(cv2)
        if not opened.isOpened():
            raise FeedError(f"{self._what}: cannot be opened; is it there, and may the agent's user read it?")
        return opened

    def _grab(self, cv2: Any, opened: Any, frames: Newest[_Frame], feed: Feed) -> None:
        """Every frame as it comes, in a thread of its own."""
        try:
            self._play(cv2, opened, frames, feed)
        except BaseException as error:  # noqa: BLE001  # told where frames are taken
            frames.end(error)
        finally:
            opened.release()

    def _play(self, cv2: Any, opened: Any, frames: Newest[_Frame], feed: Feed) -> None:
        pace = opened.get(cv2.CAP_PROP_FPS) if self._is_file else 0.0
        least_s = 1 / self._spec.fps if self._spec.fps else 0.0
        number, last, next_s = 0, -least_s, time.monotonic()
        while not feed.stopping.is_set():
            good, pixels = opened.read()
            if not good:
                if not self._is_file:
                    raise FeedError(f"{self._what}: gives no more frames")
                if not (isinstance(self._spec, CameraSource) and self._spec.repeat):
                    frames.end()
                    return
                opened.set(cv2.CAP_PROP_POS_FRAMES, 0)
                continue
            number += 1
            now = time.monotonic()
            if pace > 0:
                next_s = max(next_s + 1 / pace, now - 1)
                if feed.stopping.wait(max(0.0, next_s - now)):
                    return
            if now - last >= least_s:
                last = now
                feed.tally.count("read")
                feed.tally.count("dropped", frames.put(_Frame(number, time.time(), pixels)))

    def _answer(self, cv2: Any, frame: _Frame, feed: Feed) -> None:
        grey = self._spec.colour == "grey"
        pixels = cv2.cvtColor(frame.pixels, cv2.COLOR_BGR2GRAY if grey else cv2.COLOR_BGR2RGB)
        about = {"frame": frame.number, "at": round(frame.at, 3)}
        given = Given(uuid.uuid4().hex, "application/x-npy", npy(pixels), about)
        found = feed.answer_now(given)
        if found is not None:
            feed.keep(given, found, makes_room=True)


def npy(array: Any) -> bytes:
    """An array as a `.npy` file."""
    import numpy as np

    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


class Camera(Capture):
    def __init__(self, spec: CameraSource) -> None:
        what = f"/dev/video{spec.device}" if isinstance(spec.device, int) else spec.device
        super().__init__(spec, what, lambda cv2: _camera(cv2, spec))


class Stream(Capture):
    def __init__(self, spec: RtspSource) -> None:
        # The password of an address is nobody's business.
        super().__init__(spec, spec.url.rpartition("@")[2], lambda cv2: _stream(cv2, spec.url))


def _camera(cv2: Any, spec: CameraSource) -> Any:
    is_device = isinstance(spec.device, int) or spec.device.startswith("/dev/")
    opened = cv2.VideoCapture(spec.device, cv2.CAP_V4L2 if is_device else cv2.CAP_FFMPEG)
    if is_device:
        for name, value in ((cv2.CAP_PROP_FRAME_WIDTH, spec.width), (cv2.CAP_PROP_FRAME_HEIGHT, spec.height)):
            if value is not None:
                opened.set(name, value)
    return opened


def _stream(cv2: Any, url: str) -> Any:
    # Over TCP: one port, which is all that the process may connect to.
    os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = "rtsp_transport;tcp"
    limits = [
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, int(OPEN_S * 1000), cv2.CAP_PROP_READ_TIMEOUT_MSEC, int(FRAME_S * 1000)
    ]  # fmt: skip
    return cv2.VideoCapture(url, cv2.CAP_FFMPEG, limits)


def _opencv() -> Any:
    """Raises: FeedError."""
    try:
        import cv2
    except ImportError as error:
        raise FeedError(f"OpenCV is not installed here: {extra('agent', 'camera')}") from error
    cv2.setNumThreads(1)
    return cv2
