"""The cache: never another result than a clean build's, never in the way of a build, never larger than it may be."""

import errno
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from converters.data.datasets import Datasets
from converters.keep import artifacts, journals, own_code, room
from converters.keep.artifacts import Cache
from edgekit.cli import cli
from edgekit.errors import UsageError
from edgekit.manifest import TensorSpec

KEY = {"recipe": "a/fp32"}


def made(content):
    def make(folder):
        (folder / "m.onnx").write_bytes(content)
        return {"notes": ["made"]}

    return make


def fetch(cache, tmp_path, content=b"model", parts=KEY):
    folder = tmp_path / f"work-{len(list(tmp_path.iterdir()))}"
    folder.mkdir()
    meta = cache.fetch(parts, folder, made(content))
    return meta, (folder / "m.onnx").read_bytes()


@pytest.fixture
def told():
    return []


@pytest.fixture
def kept(tmp_path, told):
    return Cache(tmp_path / "cache", tell=told.append)


def entry(cache):
    return room.entries(cache.root)[0].path


def test_an_entry_is_served_again_and_knows_when_it_was_used(kept, tmp_path, told):
    fetch(kept, tmp_path)
    os.utime(entry(kept), (0, 0))
    for file in entry(kept).iterdir():
        os.utime(file, (0, 0))
    assert fetch(kept, tmp_path, b"other") == ({"notes": ["made"]}, b"model")
    assert room.entries(kept.root)[0].used > 1e9
    assert kept.made == 1
    assert told == []


def test_changed_converting_code_shares_no_entry(kept, tmp_path, monkeypatch):
    fetch(kept, tmp_path)
    monkeypatch.setattr(own_code, "digest", lambda: "other code")
    assert fetch(kept, tmp_path, b"mended")[1] == b"mended"


def test_the_code_that_converts_is_in_the_digest_and_what_only_tells_is_not():
    rooms = {path.parent.name for path in own_code.files()} | {
        path.parent.parent.name for path in own_code.files()
    }
    assert {"backends", "graph", "quantize", "engines"} <= rooms
    assert not {"report", "commands", "measure", "judge"} & rooms


@pytest.mark.parametrize(
    "damage", ["cut file", "other bytes", "no file", "cut meta", "empty meta", "old format"]
)
def test_a_damaged_entry_is_made_anew_and_said(damage, kept, tmp_path, told):
    fetch(kept, tmp_path)
    file, meta = entry(kept) / "m.onnx", entry(kept) / artifacts.META
    match damage:
        case "cut file":
            file.write_bytes(b"mod")
        case "other bytes":
            file.write_bytes(b"mobel")
        case "no file":
            file.unlink()
        case "cut meta":
            meta.write_text(meta.read_text()[:-5])
        case "empty meta":
            meta.write_text("")
        case "old format":
            meta.write_text(json.dumps({"notes": []}))
    assert fetch(kept, tmp_path, b"again")[1] == b"again"
    if damage != "no file":
        assert len(told) == 1
        assert "damaged" in told[0]
        assert fetch(kept, tmp_path, b"third")[1] == b"again"


def test_a_cache_whose_place_is_a_file_costs_one_sentence(tmp_path, told):
    (tmp_path / "cache").write_text("in the way")
    cache = Cache(tmp_path / "cache", tell=told.append)
    assert fetch(cache, tmp_path)[1] == b"model"
    assert fetch(cache, tmp_path, parts={"recipe": "b"})[1] == b"model"
    assert len(told) == 1
    assert "cannot be used" in told[0]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a megabyte."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=False)


def test_a_full_disk_under_the_cache_costs_one_sentence_and_leaves_no_half_entry(small_disk, tmp_path, told):
    cache = Cache(small_disk / "cache", tell=told.append)
    big = bytes(3_000_000)
    assert fetch(cache, tmp_path, big)[1] == big
    assert len(told) == 1
    assert os.strerror(errno.ENOSPC) in told[0]
    assert room.entries(cache.root) == []
    assert [path.name for path in cache.root.iterdir() if path.name.startswith(".part")] == []


def test_a_read_only_cache_is_read_and_not_written(small_disk, tmp_path, told):
    cache = Cache(small_disk / "cache", tell=told.append)
    fetch(cache, tmp_path)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert fetch(cache, tmp_path, b"other")[1] == b"model"
    assert told == []
    assert fetch(cache, tmp_path, b"new", {"recipe": "new"})[1] == b"new"
    assert len(told) == 1


def fill(root, names, size=1000):
    for age, name in enumerate(names):
        folder = root / (name * 64)[:64]
        folder.mkdir(parents=True)
        (folder / "data").write_bytes(bytes(size))
        for path in (folder / "data", folder):
            os.utime(path, (age + 1, age + 1))


def test_what_was_used_longest_ago_goes_first_of_all_kinds(tmp_path):
    fill(tmp_path, "ab")
    fill(tmp_path / room.BUILDS, "cd")
    (tmp_path / "notes.txt").write_text("keep me")
    everything = sum(item.size_bytes for item in room.everything(tmp_path))
    assert room.make_room(tmp_path, everything) == 0
    assert room.make_room(tmp_path, 2000) == 2
    assert [item.path.name[0] for item in room.everything(tmp_path)] == ["b", "d"]
    assert (tmp_path / "notes.txt").exists()


def test_nothing_goes_while_somebody_reads_and_no_search_in_progress(tmp_path):
    fill(tmp_path, "a")
    with room.lock(tmp_path, alone=False):
        assert room.make_room(tmp_path, 0) == 0
    with journals.journal(tmp_path, "b" * 64, tmp_path / "spare", print) as path:
        path.write_bytes(bytes(1000))
        assert room.make_room(tmp_path, 0) == 1
        assert path.is_file()
    assert room.make_room(tmp_path, 0) == 1


def test_a_store_makes_room(kept, tmp_path, monkeypatch):
    monkeypatch.setenv(room.VARIABLE, "2.5KB")
    for name in "abcd":
        fetch(kept, tmp_path, bytes(1000), {"recipe": name})
    assert 1 <= len(room.entries(kept.root)) <= 2
    assert fetch(kept, tmp_path, b"x", {"recipe": "d"})[1] == bytes(1000)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1000", 1000), ("500MB", 5 * 10**8), ("10 gb", 10**10), ("1.5G", 15 * 10**8), ("7B", 7)],
)
def test_sizes_are_read_as_people_write_them(text, value):
    assert room.parse_size(text, "--to") == value


def test_a_limit_that_is_no_size_is_refused(monkeypatch):
    monkeypatch.setenv(room.VARIABLE, "plenty")
    with pytest.raises(UsageError, match="plenty"):
        room.limit_bytes()


def test_two_searches_at_once_have_a_journal_each(tmp_path, told):
    with journals.journal(tmp_path, "a" * 64, tmp_path / "one", told.append) as first:
        first.write_text("known\n")
        with journals.journal(tmp_path, "a" * 64, tmp_path / "two", told.append) as second:
            assert second != first
            assert second.read_text() == "known\n"
    assert len(told) == 1


def test_an_entry_that_goes_while_it_is_measured_takes_no_room(tmp_path, monkeypatch):
    entry = tmp_path / ("0" * 64)
    inner = entry / "inner"
    inner.mkdir(parents=True)
    (inner / "file").write_bytes(b"x" * 100)
    assert room.entries(tmp_path)[0].size_bytes == 100
    scandir = os.scandir

    def going(folder):
        if Path(folder) == inner:
            monkeypatch.undo()
            shutil.rmtree(entry)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", going)
    (kept,) = room.entries(tmp_path)
    assert kept.size_bytes == 0


def test_many_builds_at_once_read_write_and_make_room_without_harm(tmp_path, monkeypatch):
    monkeypatch.setenv(room.VARIABLE, "6KB")
    failures = []

    def work(number):
        random = np.random.default_rng(number)
        for turn in range(40):
            name = int(random.integers(0, 8))
            folder = tmp_path / "work" / f"{number}-{turn}"
            folder.mkdir(parents=True)
            cache = Cache(tmp_path / "cache", tell=failures.append)
            cache.fetch({"recipe": name}, folder, made(bytes([name]) * 1000))
            if (folder / "m.onnx").read_bytes() != bytes([name]) * 1000:
                failures.append(f"{name} is wrong")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert not list((tmp_path / "cache").glob(".part*"))


def test_the_command_shows_the_limit_and_trims(tmp_path, monkeypatch):
    monkeypatch.setenv(room.VARIABLE, "3GB")
    fill(tmp_path, "ab")
    told = CliRunner().invoke(cli, ["cache", "status", "--cache", str(tmp_path)])
    assert "3.0 GB" in told.output
    done = CliRunner().invoke(cli, ["cache", "trim", "--cache", str(tmp_path), "--to", "1000"])
    assert "removed 1 entries" in done.output


@pytest.mark.proof
def test_the_same_calibration_file_with_and_without_evaluation_data_calibrates_differently(
    digits, run_build, tmp_path
):
    """Without evaluation data a fifth is held back to judge on; what saw it must not be served from the cache."""
    with np.load(digits.folder / "calib.npz") as data:
        images = np.concatenate([data["x"]] * 4)
    # What is held back decides the range.
    images[-80:] *= 1.15
    np.savez(tmp_path / "calib.npz", x=images)
    words = [
        str(digits.folder / "model.onnx"), "--name", "d", "--version", "1", "--shape", "x=1,1,8,8",
        "--calibration", str(tmp_path / "calib.npz"), "--target", "nxp-imx93-ethos-u65", "--accept-uncertain",
        "--recipe", "litert/static-int8", "--max-accuracy-drop", "1",
    ]  # fmt: skip
    own = ["--evaluation", str(digits.folder / "eval.npz")]
    digests = {}
    for name, more, cache in (("first", own, "shared"), ("second", [], "shared"), ("clean", [], "clean")):
        out = tmp_path / name
        result = run_build(*words, *more, "--out", out, "--json", out / "r.json", cache=tmp_path / cache)
        assert result.exit_code == 0, result.output
        digests[name] = json.loads((out / "r.json").read_text())["bundles"][0]["digest"]
    assert digests["second"] == digests["clean"]


@pytest.mark.parametrize("place", ["file", "damaged build"])
def test_a_finished_build_is_not_lost_because_of_its_cache(place, digits, run_build, tmp_path):
    words = [*digits.flags("model.onnx", "x86-64-v3"), "--recipe", "onnxruntime/fp32"]
    cache = tmp_path / "cache"
    if place == "file":
        cache.write_text("in the way")
    else:
        assert run_build(*words, "--out", tmp_path / "first", cache=cache).exit_code == 0
        for file in (cache / room.BUILDS).rglob("*.edgekit"):
            file.write_bytes(file.read_bytes()[:-10])
    result = run_build(*words, "--out", tmp_path / "out", cache=cache)
    assert result.exit_code == 0, result.output
    assert list((tmp_path / "out").glob("*.edgekit"))
    assert ("cannot be used" if place == "file" else "is damaged") in result.output
    assert Path(tmp_path / "out" / "report.html").is_file()


def test_the_key_of_calibration_data_says_how_much_of_it_is_used(tmp_path):
    """Whatever else differs: with evaluation data of its own, the held-back fifth is calibrated with too."""
    np.savez(tmp_path / "calib.npz", x=np.random.default_rng(0).normal(size=(400, 1, 4)).astype(np.float32))
    source = SimpleNamespace(
        admitted=(TensorSpec("x", "float32", (1, 4)),), states=(), state=(), buckets=None, reference=None
    )
    found = {}
    for evaluation in ("", str(tmp_path / "calib.npz")):
        table = SimpleNamespace(
            calibration=str(tmp_path / "calib.npz"), evaluation=evaluation, shifted=(), seed=0
        )
        project = SimpleNamespace(file=SimpleNamespace(data=table), folder=tmp_path, where="p", preprocess={})
        data = Datasets(project, source, gate=None)
        assert data.calibration is not None
        found[len(list(data.calibration()))] = data.fingerprint
    assert sorted(found) == [320, 400]
    assert found[320] != found[400]
