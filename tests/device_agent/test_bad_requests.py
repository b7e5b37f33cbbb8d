"""Bad requests at a real worker's socket: a corpus, and what hypothesis makes of good ones.

Whatever comes, the worker answers with a 4xx (or ends the connection), counts it as the caller's mistake or not at all,
never as an engine's error, and goes on serving.
"""

import contextlib
import gzip
import io
import json
import socket
import struct
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

INFER, PREDICT = "/v2/models/digits/infer", "/predict"
GOOD = {"name": "x", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}


def npy_header(text: str, version: tuple[int, int] = (1, 0)) -> bytes:
    data = text.encode("latin-1")
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H", len(data)) + data


def npz(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def infer(*tensors, **more) -> bytes:
    return json.dumps({"inputs": list(tensors), **more}).encode()


def with_binary(shape, datatype, data: bytes, size=None) -> tuple[bytes, int]:
    size = len(data) if size is None else size
    head = json.dumps(
        {"inputs": [{"name": "x", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}]}
    ).encode()  # fmt: skip
    return head + data, len(head)


NPY = {"Content-Type": "application/x-npy"}
NPZ = {"Content-Type": "application/x-npz"}
JSON = {"Content-Type": "application/json"}
_cut, _cut_split = with_binary([1, 1, 8, 8], "FP32", b"\0" * 255)
_lie, _lie_split = with_binary([1, 1, 8, 8], "FP32", b"\0" * 256, size=2**62)
_bool, _bool_split = with_binary([4], "BOOL", b"\0\1\2\3")
_raw, _raw_split = with_binary([1, 1, 8, 8], "FP32", b"\0" * 256)
_zeros = np.zeros((8, 8), np.float32)
_stream = io.BytesIO()
np.save(_stream, _zeros)
NPY_GOOD = _stream.getvalue()
_bomb = zlib.compress(b" " * (64 << 20), 9)

# name → path, body, headers
CORPUS: dict[str, tuple[str, bytes, dict[str, str]]] = {
    "invalid UTF-8": (INFER, b'{"inputs": [{"name": "\xff\xfe"}]}', JSON),
    "invalid UTF-8 in a predict body": (PREDICT, b'{"\xff": 1}', JSON),
    "65 dimensions": (INFER, infer({**GOOD, "shape": [1] * 63 + [8, 8]}), JSON),
    "200 nested lists": (INFER, infer({**GOOD, "data": None}).replace(b"null", b"[" * 200 + b"]" * 200), JSON),
    "200 nested lists, predicted": (PREDICT, b"[" * 200 + b"]" * 200, JSON),
    "100 000 nested lists": (PREDICT, b"[" * 100_000 + b"]" * 100_000, JSON),
    "100 000 nested objects": (INFER, b'{"a":' * 1000 + b"1" + b"}" * 1000, JSON),
    "a dimension of nothing and a huge one": (INFER, infer({**GOOD, "shape": [0, 2**62, 4], "data": []}), JSON),
    "dimensions whose product wraps": (INFER, infer({**GOOD, "shape": [2**32, 2**32]}), JSON),
    "a dimension beyond 64 bits": (INFER, infer({**GOOD, "shape": [2**70]}), JSON),
    "a dimension that is a fraction": (INFER, infer({**GOOD, "shape": [1.5]}), JSON),
    "a superscript length": (INFER, infer(GOOD), {"Inference-Header-Content-Length": "\u00b2"}),
    "an Arabic length": (INFER, infer(GOOD), {"Inference-Header-Content-Length": "1_0"}),
    "a length of 5000 digits": (INFER, infer(GOOD), {"Inference-Header-Content-Length": "1" * 5000}),
    "a negative length": (INFER, infer(GOOD), {"Inference-Header-Content-Length": "-1"}),
    "a header length inside the JSON": (INFER, infer(GOOD), {"Inference-Header-Content-Length": "5"}),
    "binary data cut": (INFER, _cut, {"Inference-Header-Content-Length": str(_cut_split)}),
    "a binary size that lies": (INFER, _lie, {"Inference-Header-Content-Length": str(_lie_split)}),
    "bytes that are no truth values": (INFER, _bool, {"Inference-Header-Content-Length": str(_bool_split)}),
    "text for numbers": (INFER, infer({**GOOD, "data": ["a"] * 64}), JSON),
    "one long text among short ones": (INFER, infer({**GOOD, "data": ["a" * 500_000] + ["b"] * 63}), JSON),
    "one long text, predicted": (PREDICT, json.dumps({"input": ["a" * 500_000] + ["b"] * 20_000}).encode(), JSON),
    "BYTES": (INFER, infer({**GOOD, "datatype": "BYTES"}), JSON),
    "an object for data": (INFER, infer({**GOOD, "data": {"0": 1}}), JSON),
    "nulls for data": (INFER, infer({**GOOD, "data": [None] * 64}), JSON),
    "NaN in JSON": (INFER, infer(GOOD).replace(b"0.5", b"NaN"), JSON),
    "a number beyond a float": (INFER, infer({**GOOD, "data": [1e39] + [0] * 63}), JSON),
    "an integer of 4000 digits": (PREDICT, b'{"input": [' + b"9" * 4000 + b"]}", JSON),
    "data twice": (INFER, infer({**GOOD, "parameters": {"binary_data_size": 0}}), JSON),
    "no data": (INFER, infer({key: GOOD[key] for key in ("name", "shape", "datatype")}), JSON),
    "an input twice": (INFER, infer(GOOD, GOOD), JSON),
    "an input too many": (INFER, infer(GOOD, {**GOOD, "name": "y"}), JSON),
    "an output that is not there": (INFER, infer(GOOD, outputs=[{"name": "z"}]), JSON),
    "an output twice": (INFER, infer(GOOD, outputs=[{"name": "logits"}] * 2), JSON),
    "parameters that are a list": (INFER, infer(GOOD, parameters=[1]), JSON),
    "a sequence that is a list": (INFER, infer(GOOD, parameters={"sequence_id": []}), JSON),
    "a request that is a list": (INFER, b"[]", JSON),
    "nothing": (INFER, b"", JSON),
    "nothing, predicted": (PREDICT, b"", JSON),
    "too many values": (INFER, infer({**GOOD, "data": [0] * 400_000}), JSON),
    "too many keys": (PREDICT, json.dumps({str(i): 1 for i in range(60_000)}).encode(), JSON),
    "empty lists": (PREDICT, b"[" + b",".join([b"[]"] * 300_000) + b"]", JSON),
    "npy: shape of 2**62": (PREDICT, npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904,)}"), NPY),
    "npy: negative shape": (PREDICT, npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"), NPY),
    "npy: 65 dimensions": (PREDICT, npy_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {(1,) * 65}}}") + b"\0" * 4, NPY),
    "npy: header is code": (PREDICT, npy_header("__import__('os').system('false')"), NPY),
    "npy: header is deep": (PREDICT, npy_header("(" * 4000 + ")" * 4000), NPY),
    "npy: header unfinished": (PREDICT, npy_header("{'descr': '<f4', "), NPY),
    "npy: not a type": (PREDICT, npy_header("{'descr': 'q9', 'fortran_order': False, 'shape': (1,)}"), NPY),
    "npy: record type": (PREDICT, npy_header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}") + b"\0" * 4, NPY),
    "npy: text": (PREDICT, npy_header("{'descr': '<U9', 'fortran_order': False, 'shape': (1,)}") + b"\0" * 36, NPY),
    "npy: objects": (PREDICT, npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}") + b"\0" * 8, NPY),
    "npy: version 9": (PREDICT, npy_header("{}", (9, 9)), NPY),
    "npy: header longer than the body": (PREDICT, b"\x93NUMPY\x01\x00\xff\xff{}", NPY),
    "npy: bytes too many": (PREDICT, NPY_GOOD + b"\0", NPY),
    "npy: bytes too few": (PREDICT, NPY_GOOD[:-1], NPY),
    "npz: claims to be compressed": (PREDICT, npz(**{"x.npy": NPY_GOOD}).replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x00\x00\x08\x00"), NPZ),
    "npz: folded samples": (PREDICT, npz(**{"x.npy": NPY_GOOD, "x@repeat.npy": NPY_GOOD}), NPZ),
    "npz: huge shape inside": (PREDICT, npz(**{"x.npy": npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,)}")}), NPZ),
    "npz: 5000 members": (PREDICT, npz(**{f"m{i}": b"" for i in range(5000)}), NPZ),
    "npz: cut": (PREDICT, npz(**{"x.npy": NPY_GOOD})[:-30], NPZ),
    "a gzip body that is none": (INFER, infer(GOOD), {**JSON, "Content-Encoding": "gzip"}),
    "a gzip body cut": (INFER, gzip.compress(infer(GOOD))[:-5], {**JSON, "Content-Encoding": "gzip"}),
    "a gzip body with more behind": (INFER, gzip.compress(infer(GOOD)) + b"x", {**JSON, "Content-Encoding": "gzip"}),
    "a deflate bomb": (INFER, _bomb, {**JSON, "Content-Encoding": "deflate"}),
    "brotli": (INFER, infer(GOOD), {**JSON, "Content-Encoding": "br"}),
    "two codings": (INFER, infer(GOOD), {**JSON, "Content-Encoding": "gzip, gzip"}),
    "an image that is none": (PREDICT, b"\x89PNG\r\n\x1a\n" + b"\0" * 50, {"Content-Type": "image/png"}),
    "a picture of a type not taken": (PREDICT, b"GIF89a" + b"\0" * 50, {"Content-Type": "image/png"}),
    "a sound for a model of pictures": (PREDICT, b"RIFF" + b"\0" * 50, {"Content-Type": "audio/wav"}),
    "an expectation nobody knows": (INFER, infer(GOOD), {**JSON, "Expect": "200-maybe"}),
}  # fmt: skip


def exchange(port: int, data: bytes, patience_s: float = 20.0) -> bytes:
    """What comes back until the other side is silent or closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=patience_s) as client:
        with contextlib.suppress(OSError):
            client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(OSError):
            while piece := client.recv(65536):
                answer += piece
        return answer


def request(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: a", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {text}" for name, text in headers.items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


@pytest.fixture(scope="module")
def hosted(module_worker):
    """One worker for all of them: what one case does to it, the next would notice."""
    return module_worker


@pytest.mark.parametrize("case", CORPUS)
def test_a_bad_request_is_the_callers_mistake(case, hosted):
    answer = exchange(hosted.port, request(*CORPUS[case]))
    status = int(answer.split(b" ")[1])
    assert 400 <= status < 500, answer[:300]
    assert len(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]) > 10
    window = hosted.count()
    assert (window["errors"], window["requests"]) == (0, 0)
    assert hosted.serves()


def test_memory_did_not_grow_with_them(hosted):
    for bad in CORPUS.values():
        exchange(hosted.port, request(*bad))
    assert hosted.peak_mb() - hosted.first_mb < 160


BASES = [
    (INFER, infer(GOOD), JSON),
    (PREDICT, json.dumps({"input": _zeros.tolist()}).encode(), JSON),
    (PREDICT, NPY_GOOD, NPY),
    (PREDICT, npz(**{"x.npy": NPY_GOOD}), NPZ),
    (INFER, _raw, {"Inference-Header-Content-Length": str(_raw_split)}),
    (INFER, gzip.compress(infer(GOOD)), {**JSON, "Content-Encoding": "gzip"}),
]  # fmt: skip


@st.composite
def spoiled(draw):
    """A good request with bytes of its head or body changed, cut out or put in."""
    path, body, headers = draw(st.sampled_from(BASES))
    data = bytearray(request(path, body, headers))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(data) - 1))
        how = draw(st.sampled_from(["change", "cut", "put", "digit"]))
        if how == "change":
            data[at] = draw(st.integers(0, 255))
        elif how == "cut":
            del data[at : at + draw(st.integers(1, 20))]
        elif how == "put":
            data[at:at] = draw(st.binary(min_size=1, max_size=20))
        else:
            data[at:at] = draw(st.sampled_from([b"9" * 20, b"-1", b"1e999", b"null", b"[", b"{}", b'"']))
        if not data:
            data += b"x"
    return bytes(data)


@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=spoiled())
def test_any_spoiled_request_is_answered_or_cut_and_counts_no_error(data, hosted):
    answer = exchange(hosted.port, data)
    if answer:
        assert answer.startswith(b"HTTP/1.1 ")
        assert int(answer.split(b" ")[1]) < 500, answer[:300]
    assert hosted.count()["errors"] == 0


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.dictionaries(
                st.sampled_from(["inputs", "name", "x", "shape", "datatype", "data", "parameters", "outputs", "id"]), inner
            ),
        ),
        max_leaves=20,
    ),
    path=st.sampled_from([INFER, PREDICT]),
)  # fmt: skip
def test_any_json_is_answered_and_counts_no_error(body, path, hosted):
    answer = exchange(hosted.port, request(path, json.dumps(body).encode(), JSON))
    assert 200 <= int(answer.split(b" ")[1]) < 500
    assert hosted.count()["errors"] == 0
