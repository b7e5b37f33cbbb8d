"""Files: what lies in the folder afterwards, and that a mirror gets nothing else into it."""

import hashlib

import pytest
from lying_repository import Device

from device_agent.tuf.targets import _key, local_name
from device_agent.tuf.web import below
from device_agent.update.fetch import FetchError

ONLINE = ("targets", "snapshot", "timestamp")


def files(device: Device) -> dict[str, bytes]:
    """Everything below the folder that is not hidden."""
    found = device.files.rglob("*") if device.files.exists() else ()
    return {
        path.name: path.read_bytes()
        for path in found
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(device.files).parts)
    }


def offered(repository, path="model.bin", data=b"signed content", **more):
    repository.add(path, data, **more)
    repository.publish(*ONLINE)
    return Device(repository)


@pytest.mark.parametrize(
    "path",
    ["file.txt", "path/to/a/file.txt", "../up", "a b.txt", "Ärger.txt", "50%.txt", "50%25.txt", "#1", "what?",
     ".hidden", ".", "x" * 240, "/leading"],
)  # fmt: skip
def test_a_target_of_any_name_comes_to_a_file_of_its_own_inside_the_folder(repository, path):
    device = offered(repository, path)
    assert device.download(path) == [b"signed content"]
    inside = list(device.files.iterdir())
    assert [file.read_bytes() for file in inside if file.is_file()] == [b"signed content"]
    assert {file.name for file in repository.folder.iterdir()} == {"metadata", "files"}


def test_names_that_differ_lie_under_names_that_differ():
    names = ["a/b", "a%2Fb", "a b", "a%20b", ".", "..", ".partial", "x" * 240, "x" * 241, "A/b", "ä"]
    assert len({local_name(name) for name in names}) == len(names)
    assert not any("/" in local_name(name) for name in names)


def test_only_what_cannot_stand_in_an_address_is_encoded():
    assert below("http://m/t/", "a b/ä%41?x") == "http://m/t/a%20b/%C3%A4%41?x"
    assert below("http://m/t", "50%#1") == "http://m/t/50%25%231"


def test_an_empty_target_is_an_empty_file(repository):
    assert offered(repository, data=b"").download("model.bin") == [b""]


@pytest.mark.parametrize("hashes", [("sha256",), ("sha512",), ("sha512", "sha256"), ("blake2b",)])
def test_hashes_of_every_kind_are_checked(repository, hashes):
    device = offered(repository, hashes=hashes)
    assert device.download("model.bin") == [b"signed content"]


def test_a_hash_of_an_unknown_kind_satisfies_nothing(repository):
    repository.add("model.bin", b"signed content")
    repository.targets().targets["model.bin"].hashes["nonesuch"] = "00"
    repository.publish(*ONLINE)
    with pytest.raises(FetchError):
        Device(repository).download("model.bin")


@pytest.mark.parametrize(
    "lie", [b"other content!", b"signed contenT", b"short", b"signed content and more", b"", 404, 500]
)
def test_a_mirror_that_gives_another_file_gets_none_kept(repository, lie):
    device = offered(repository)
    digest = hashlib.sha256(b"signed content").hexdigest()
    repository.instead[f"/targets/{digest}.model.bin"] = lie
    with pytest.raises(FetchError):
        device.download("model.bin")
    assert files(device) == {}
    repository.instead.clear()
    assert device.download("model.bin") == [b"signed content"]


def test_what_is_here_is_not_asked_for_again(repository):
    device = offered(repository)
    device.download("model.bin")
    device.asked()
    assert device.download("model.bin") == [b"signed content"]
    assert not [name for name in device.asked() if "model" in name]


def test_a_damaged_file_is_fetched_again(repository):
    device = offered(repository)
    device.download("model.bin")
    (device.files / "model.bin").write_bytes(b"damaged")
    assert device.download("model.bin") == [b"signed content"]


def test_a_new_version_of_a_target_replaces_the_old_under_the_same_name(repository):
    device = offered(repository)
    device.download("model.bin")
    repository.add("model.bin", b"newer")
    repository.publish(*ONLINE)
    assert device.download("model.bin") == [b"newer"]
    assert files(device) == {"model.bin": b"newer"}


def test_a_download_that_was_cut_goes_on_where_it_ended(repository):
    data = bytes(range(256)) * 4096
    device = offered(repository, data=data)
    digest = hashlib.sha256(data).hexdigest()
    path = f"/targets/{digest}.model.bin"
    target = repository.targets().targets["model.bin"]
    parts = device.files / ".partial"
    parts.mkdir(parents=True)
    (parts / f"{_key(target)}.500000.part").write_bytes(data[:500_000] + b"never synced")
    (parts / f"{'0' * 64}.5.part").write_bytes(b"other")
    assert device.download("model.bin") == [data]
    asked = dict(zip(repository.asked, repository.ranges, strict=True))
    assert asked[path] == "bytes=500000-"
    assert list(parts.iterdir()) == []


def test_a_beginning_that_was_of_another_file_costs_one_try(repository):
    data = bytes(range(256)) * 16
    device = offered(repository, data=data)
    parts = device.files / ".partial"
    parts.mkdir(parents=True)
    (parts / f"{_key(repository.targets().targets['model.bin'])}.100.part").write_bytes(b"x" * 100)
    with pytest.raises(FetchError, match="altered"):
        device.download("model.bin")
    assert device.download("model.bin") == [data]
