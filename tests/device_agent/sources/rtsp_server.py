"""A small RTSP server: uncompressed frames over TCP (RFC 2326, 10.12; RFC 4175), enough for a client such as FFmpeg.

Each frame is grey, its value its number modulo 16, 10 of them a second. Counts clients, and can be told to end after some frames.
"""

import contextlib
import itertools
import socketserver
import struct
import threading
import time

SIZE = 16
SDP = f"""v=0
o=- 0 0 IN IP4 127.0.0.1
s=test
c=IN IP4 0.0.0.0
t=0 0
m=video 0 RTP/AVP 96
a=rtpmap:96 raw/90000
a=fmtp:96 sampling=RGB; width={SIZE}; height={SIZE}; depth=8; colorimetry=BT709-2
a=control:track0
""".replace("\n", "\r\n")


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        with contextlib.suppress(OSError):
            while (request := self.request_of()) is not None:
                self.answer(*request)
                if request[0] == "PLAY":
                    self.server.clients += 1
                    self.play()
                    return

    def request_of(self):
        first = self.rfile.readline().decode()
        if not first.strip():
            return None
        headers = {}
        while line := self.rfile.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        self.server.methods.append(first.split()[0])
        return first.split()[0], headers

    def answer(self, method, headers):
        more, body = [], ""
        if method == "OPTIONS":
            more = ["Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN"]
        elif method == "DESCRIBE":
            body = SDP
            more = ["Content-Type: application/sdp", f"Content-Length: {len(body)}"]
        elif method == "SETUP":
            more = ["Transport: RTP/AVP/TCP;unicast;interleaved=0-1", "Session: 1"]
        lines = ["RTSP/1.0 200 OK", f"CSeq: {headers['cseq']}", *more, "", ""]
        self.wfile.write(("\r\n".join(lines) + body).encode())

    def play(self):
        for number in range(self.server.frames):
            line = bytes([number % 16]) * (SIZE * 3)
            # The extended sequence number, then for each line: its length, number and offset; the last without "more follow".
            heads = b"".join(
                struct.pack("!HHH", len(line), y, 0x8000 if y < SIZE - 1 else 0) for y in range(SIZE)
            )
            payload = b"\0\0" + heads + line * SIZE
            rtp = struct.pack("!BBHII", 0x80, 0x80 | 96, number & 0xFFFF, number * 9000, 1) + payload
            self.wfile.write(struct.pack("!BBH", 0x24, 0, len(rtp)) + rtp)
            time.sleep(0.1)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True

    def __init__(self, frames=10_000):
        super().__init__(("127.0.0.1", 0), Handler)
        self.frames = frames
        self.clients = 0
        self.methods = []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self):
        return f"rtsp://127.0.0.1:{self.server_address[1]}/stream"

    def close(self):
        self.shutdown()
        self.server_close()


if __name__ == "__main__":
    made = Server()
    print(made.url, flush=True)
    for _ in itertools.count():
        time.sleep(1)
