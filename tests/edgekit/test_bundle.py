"""A bundle is read completely or refused completely; the same content is always the same bytes."""

import hashlib
import io
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit import bundle, stored
from edgekit.bundle import file_entry
from edgekit.errors import BundleError, EdgeKitError, ManifestError
from edgekit.manifest import EngineSpec, FileEntry, Floor, Manifest, SelfTest, TensorSpec, encode

FILES: dict[str, bytes] = {
    "model/model.onnx": b"weights" * 10,
    "selftest/inputs.npz": b"inputs",
    "selftest/source.npz": b"source",
    "selftest/artifact.npz": b"artifact",
}


ROWS = Floor(9.0, 1, ((0, 3),))


def make_manifest(files: dict[str, bytes] = FILES, **changes: object) -> Manifest:
    manifest = Manifest(
        format=1,
        name="digits",
        version="1.0.0",
        profile="x86-64-v3",
        engine=EngineSpec("onnxruntime", ">=1.20", "model/model.onnx"),
        inputs=(TensorSpec("x", "float32", (1, 4)),),
        outputs=(TensorSpec("y", "float32", (1, 2)),),
        recipe="onnxruntime/fp32",
        source_sha256="0" * 64,
        files=tuple(file_entry(path, data) for path, data in sorted(files.items())),
        selftest=SelfTest(
            "selftest/inputs.npz", "selftest/source.npz", "selftest/artifact.npz", 32, {"y": 1e-4}, 0.98
        ),
    )
    return msgspec.structs.replace(manifest, **changes)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "digits.edgekit"
    bundle.write(path, make_manifest(), FILES)
    return path


def test_what_was_written_is_read_back(good: Path) -> None:
    found = bundle.read(good)
    assert found.manifest == make_manifest()
    assert {name: found.read(name) for name in FILES} == FILES
    assert found.sha256 == hashlib.sha256(good.read_bytes()).hexdigest()


def test_the_same_content_gives_the_same_bytes_in_any_folder_and_order(tmp_path: Path) -> None:
    first = bundle.write(tmp_path / "a" / "x.edgekit", make_manifest(), FILES)
    second = bundle.write(tmp_path / "b" / "y.edgekit", make_manifest(), dict(reversed(FILES.items())))
    assert first == second
    assert (tmp_path / "a" / "x.edgekit").read_bytes() == (tmp_path / "b" / "y.edgekit").read_bytes()


def test_extraction_writes_exactly_the_listed_files(good: Path, tmp_path: Path) -> None:
    bundle.read(good).extract(tmp_path / "slot")
    found = {str(p.relative_to(tmp_path / "slot")) for p in (tmp_path / "slot").rglob("*") if p.is_file()}
    assert found == {"manifest.json", *FILES}


def test_the_bytes_are_those_that_the_zip_library_writes(good: Path, tmp_path: Path) -> None:
    """Bundles of earlier versions were written by it, and a digest never changes."""
    path = tmp_path / "library.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (("manifest.json", encode(make_manifest())), *sorted(FILES.items())):
            archive.writestr(_member(name), data)
    assert path.read_bytes() == good.read_bytes()


def test_lengths_and_places_beyond_two_gigabytes_need_no_extra_record() -> None:
    size, start = 3_000_000_000, 4_000_000_000
    header = stored.central("model/weights.bin", size, 7, start)
    end = stored.end(1, len(header), 0)
    with zipfile.ZipFile(io.BytesIO(header + end)) as archive:
        (info,) = archive.infolist()
    assert (info.file_size, info.compress_size, info.header_offset, info.extra) == (size, size, start, b"")


def test_more_than_a_bundle_holds_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    large = FileEntry(path="model/weights.bin", sha256="0" * 64, size=5_000_000_000)
    manifest = make_manifest()
    manifest = msgspec.structs.replace(manifest, files=(*manifest.files, large))
    with pytest.raises(BundleError, match=r"5\.0 GB, and a bundle holds less than 4\.3 GB"):
        bundle.write(tmp_path / "x.edgekit", manifest, {**FILES, large.path: tmp_path / "none"})
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    changed = {**FILES, "model/model.onnx": b"other"}
    with pytest.raises(BundleError, match="changed after"):
        bundle.write(tmp_path / "x.edgekit", make_manifest(), changed)
    assert list(tmp_path.iterdir()) == []


def test_length_and_digest_are_checked_before_the_zip_is_opened(good: Path) -> None:
    with pytest.raises(BundleError, match="were signed"):
        bundle.read(good, length=1)
    good.write_bytes(b"not a zip at all")
    with pytest.raises(BundleError, match="altered or damaged"):
        bundle.read(good, sha256="0" * 64)


def _member(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.create_system = 3
    info.external_attr = mode << 16
    return info


def _zip(
    path: Path, members: list[tuple[zipfile.ZipInfo, bytes]], *, method: int = zipfile.ZIP_STORED
) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for info, data in members:
            info.compress_type = method
            archive.writestr(info, data)


def _members(files: dict[str, bytes] = FILES) -> list[tuple[zipfile.ZipInfo, bytes]]:
    manifest = encode(make_manifest())
    return [
        (_member("manifest.json"), manifest),
        *((_member(name), data) for name, data in sorted(files.items())),
    ]


def _flip(path: Path, position: int, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= mask
    path.write_bytes(data)


def _deflated(path: Path) -> None:
    _zip(path, _members(), method=zipfile.ZIP_DEFLATED)


def _duplicate(path: Path) -> None:
    members = _members()
    with pytest.warns(UserWarning, match="Duplicate name"):
        _zip(path, [*members, (_member("model/model.onnx"), b"evil")])


def _link(path: Path) -> None:
    members = _members()
    members[1] = (_member(members[1][0].filename, stat.S_IFLNK | 0o777), members[1][1])
    _zip(path, members)


def _named(name: str) -> Callable[[Path], None]:
    return lambda path: _zip(path, [*_members(), (_member(name), b"evil")])


def _missing_member(path: Path) -> None:
    _zip(path, _members()[:-1])


def _no_manifest(path: Path) -> None:
    _zip(path, _members()[1:])


def _wrong_hash(path: Path) -> None:
    _zip(path, _members({**FILES, "model/model.onnx": b"WEIGHTS" * 10}))


def _trailing(path: Path) -> None:
    _zip(path, _members())
    path.write_bytes(path.read_bytes() + b"tail")


def _comment(path: Path) -> None:
    _zip(path, _members())
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"hello"


def _prefix(path: Path) -> None:
    _zip(path, _members())
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())


def _encrypted(path: Path) -> None:
    _zip(path, _members())
    start = path.read_bytes().index(b"PK\x01\x02")
    _flip(path, start + 8)


def _headers_differ(path: Path) -> None:
    _zip(path, _members())
    _flip(path, 30)  # the first letter of the first local header's name


def _overlap(path: Path) -> None:
    """Two central entries that point at one local header."""
    _zip(path, _members())
    data = bytearray(path.read_bytes())
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)
    data[second + 42 : second + 46] = struct.pack("<I", 0)
    path.write_bytes(data)


def _gap(path: Path) -> None:
    """Bytes between two members that no header accounts for."""
    _zip(path, _members())
    data = path.read_bytes()
    cut = data.index(b"PK\x03\x04", 4)
    directory = data.index(b"PK\x01\x02")
    shifted = bytearray(data[:cut] + b"\0" * 16 + data[cut:])
    position = directory + 16
    first = True
    while shifted[position : position + 4] == b"PK\x01\x02":
        (name_length,) = struct.unpack_from("<H", shifted, position + 28)
        if not first:
            (offset,) = struct.unpack_from("<I", shifted, position + 42)
            struct.pack_into("<I", shifted, position + 42, offset + 16)
        first = False
        position += 46 + name_length
    (start,) = struct.unpack_from("<I", shifted, position + 16)
    struct.pack_into("<I", shifted, position + 16, start + 16)
    path.write_bytes(shifted)


HOSTILE: dict[str, Callable[[Path], None]] = {
    "a deflated member": _deflated,
    "a name twice": _duplicate,
    "a link": _link,
    "a path that climbs": _named("model/../../evil"),
    "an absolute path": _named("/etc/evil"),
    "a Windows path": _named("model\\evil"),
    "a drive": _named("model/C:evil"),
    "a member outside the two folders": _named("other/evil"),
    "a folder entry": _named("model/sub/"),
    "a member that the manifest does not list": _named("model/extra"),
    "a listed member that is missing": _missing_member,
    "no manifest": _no_manifest,
    "content that does not match its hash": _wrong_hash,
    "data after the end": _trailing,
    "an archive comment": _comment,
    "data before the start": _prefix,
    "an encryption flag": _encrypted,
    "two headers that differ": _headers_differ,
    "overlapping members": _overlap,
    "a gap between members": _gap,
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE.keys())
def test_refuses(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "hostile.edgekit"
    make(path)
    with pytest.raises((BundleError, ManifestError)) as refused:
        bundle.read(path)
    assert "hostile.edgekit" in str(refused.value) or "manifest.json" in str(refused.value)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_no_cut_and_no_flipped_byte_is_ever_read_as_the_same_bundle(good: Path, data: st.DataObject) -> None:
    original = good.read_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    damaged = good.with_name("damaged.edgekit")
    if data.draw(st.booleans()):
        damaged.write_bytes(original[:position])
    else:
        damaged.write_bytes(original)
        _flip(damaged, position, data.draw(st.integers(1, 255)))
    with pytest.raises(EdgeKitError):
        bundle.read(damaged, sha256=hashlib.sha256(original).hexdigest())
    try:
        found = bundle.read(
            damaged
        )  # without a known digest: refused with our own error, or the same content
    except EdgeKitError:
        return
    assert {name: found.read(name) for name in FILES} == FILES


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 6}, "format 6 is not known"),
        ({"inputs": (TensorSpec("x", "float32", (None, 4)),)}, "leaves the shape"),
        ({"engine": EngineSpec("onnxruntime", ">=1", "model/absent")}, "not among its files"),
        ({"preprocess": {"z": ()}}, "which is no input"),
        ({"name": "Not A Name"}, "matching regex"),
        (
            {"format": 2, "selftest": msgspec.structs.replace(make_manifest().selftest, kept=64)},
            "came with format 3, and says 2",
        ),
        (
            {
                "format": 3,
                "selftest": msgspec.structs.replace(make_manifest().selftest, snr_db={"z": (Floor(9.0),)}),
            },
            "'z', which is no output",
        ),
        (
            {
                "format": 3,
                "selftest": msgspec.structs.replace(make_manifest().selftest, snr_db={"y": (ROWS,)}),
            },
            "rows 0-2 of axis 1, which 'y' has not",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    changes: dict[str, object], says: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.edgekit"
    bundle.write(path, make_manifest(**changes), FILES)
    with pytest.raises(ManifestError, match=says):
        bundle.read(path)


@pytest.mark.parametrize("name", ["net.onnx", "net.pt2", "net.TFLITE"])
def test_a_model_in_a_bundles_place_is_told_from_a_damaged_bundle(name, tmp_path):
    path = tmp_path / name
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", b"")
    with pytest.raises(BundleError, match=rf"{name}: a model, not a bundle; `edgekit build {name}`"):
        bundle.read(path)
