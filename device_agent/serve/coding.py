"""Content codings: gzip and deflate, of requests within a bound, and of answers where it pays.

Source: RFC 9110, 8.4 (Content-Encoding) and 12.5.3 (Accept-Encoding); RFC 1950 to 1952.
"""

import zlib
from collections.abc import Mapping

from device_agent.serve.http import Head, Response
from device_agent.serve.parsing import MediaTypeError, TooLargeError
from edgekit.errors import InputError

# An answer below this size gains nothing; binary tensors are noise to a compressor.
WORTH_BYTES = 4096
_WORTH = ("application/json", "text/")
# zlib's own way to say which wrapper it reads: 31 gzip, 15 zlib, -15 none.
_WRAPPERS: Mapping[str, tuple[int, ...]] = {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15)}


def coding_of(head: Head) -> str:
    """The body's coding, empty where it has none. Raises: MediaTypeError for one that is not taken here."""
    told = head.headers.get("content-encoding", "").strip().lower()
    if told in ("", "identity"):
        return ""
    if told not in _WRAPPERS:
        raise MediaTypeError(f"content coding {told!r} is not taken here; send gzip, deflate or none")
    return told


def decoded(coding: str, body: bytes | bytearray, limit: int) -> bytes:
    """The body without its coding. Raises: InputError, TooLargeError where it unfolds to more than `limit` bytes."""
    # Servers and clients disagree about deflate: RFC 9110 means the zlib format, some send it bare.
    problem = ""
    for wbits in _WRAPPERS[coding]:
        reader = zlib.decompressobj(wbits)
        try:
            made = reader.decompress(body, limit + 1)
        except zlib.error as error:
            problem = str(error)
            continue
        if len(made) > limit:
            raise TooLargeError(f"the body unfolds to more than {limit} bytes, the most taken here")
        if not reader.eof or reader.unused_data:
            raise InputError(f"the body is not one whole {coding} stream")
        return made
    raise InputError(f"the body is not {coding}: {problem}")


def accepts_gzip(head: Head) -> bool:
    for part in head.headers.get("accept-encoding", "").lower().split(","):
        name, _, parameters = part.partition(";")
        if name.strip() in ("gzip", "x-gzip", "*"):
            return parameters.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def is_worth_packing(head: Head, response: Response) -> bool:
    return (
        len(response.body) >= WORTH_BYTES and response.content_type.startswith(_WORTH) and accepts_gzip(head)
    )


def packed(response: Response) -> Response:
    packer = zlib.compressobj(1, wbits=31)
    body = packer.compress(response.body) + packer.flush()
    headers = {**response.headers, "content-encoding": "gzip", "vary": "accept-encoding"}
    return Response(response.status, body, response.content_type, headers, response.close)
