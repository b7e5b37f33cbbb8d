"""The workflow of a client, attack by attack: what the device then trusts, and what it asked for."""

import json
from datetime import timedelta

import pytest
from lying_repository import NOW, Device, of_kind, renamed
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import SuccinctRoles

from device_agent.tuf import client as clients
from device_agent.tuf.client import MetadataRefusedError
from device_agent.update.fetch import FetchError

ONLINE = ("targets", "snapshot", "timestamp")


def refuses(device: Device, match: str | None = None) -> None:
    with pytest.raises((MetadataRefusedError, FetchError), match=match):
        device.refresh()


# -- the ordinary day ------------------------------------------------------------------------------------------------


def test_the_first_refresh_asks_for_each_role_once_and_keeps_it_as_it_came(repository):
    device = Device(repository)
    device.refresh()
    assert device.asked() == ["2.root", "timestamp", "1.snapshot", "1.targets"]
    assert device.versions() == {"root": 1, "timestamp": 1, "snapshot": 1, "targets": 1}
    for role in ("snapshot", "targets"):
        assert device.kept.read(role) == repository.served[f"/metadata/1.{role}.json"]


def test_a_second_refresh_asks_only_whether_there_is_something_new(repository):
    device = Device(repository)
    device.refresh()
    device.asked()
    device.refresh()
    assert device.asked() == ["2.root", "timestamp"]


def test_without_consistent_snapshots_names_carry_no_version(repository):
    repository.root.consistent_snapshot = False
    repository.publish("root", *ONLINE)
    repository.add("file", b"content")
    repository.publish(*ONLINE)
    device = Device(repository)
    assert device.download("file") == [b"content"]
    assert device.asked() == ["2.root", "3.root", "timestamp", "snapshot", "targets", "file"]


@pytest.mark.parametrize("with_hashes", [False, True])
def test_new_versions_are_followed(repository, with_hashes):
    repository.with_hashes = with_hashes
    device = Device(repository)
    device.refresh()
    for _ in range(3):
        repository.publish(*ONLINE)
        device.refresh()
    assert device.versions() == {"root": 1, "timestamp": 4, "snapshot": 4, "targets": 4}


def test_what_metadata_says_beyond_the_specification_is_signed_like_the_rest(repository):
    device = Device(repository)
    repository.root.unrecognized_fields["x-note"] = {"a": [1, "two"]}
    keyid = repository.root.roles["targets"].keyids[0]
    repository.root.keys[keyid].unrecognized_fields["keyid_hash_algorithms"] = ["md5"]
    repository.publish("root")
    device.refresh()
    assert device.versions()["root"] == 2
    changed = json.loads(repository.signed("timestamp"))
    changed["signed"]["x-note"] = 1
    repository.instead["/metadata/timestamp.json"] = json.dumps(changed).encode()
    refuses(device, "signed by 0/1")


# -- root ------------------------------------------------------------------------------------------------------------


def test_a_chain_of_roots_is_walked_one_by_one(repository):
    for _ in range(6):
        repository.rotate("timestamp")
        repository.publish("root")
    repository.publish("timestamp")
    device = Device(repository)
    device.refresh()
    assert device.asked()[:7] == [f"{n}.root" for n in range(2, 9)]
    assert device.kept.read("root") == repository.served["/metadata/7.root.json"]


def test_no_more_roots_than_the_bound_are_walked_at_once(repository, monkeypatch):
    monkeypatch.setattr(clients, "MAX_ROOTS", 3)
    for _ in range(5):
        repository.publish("root")
    device = Device(repository)
    device.refresh()
    assert device.versions()["root"] == 4
    device.refresh()
    assert device.versions()["root"] == 6


def test_a_root_that_skips_a_version_ends_the_update(repository):
    repository.publish("root")
    repository.publish("root")
    repository.served["/metadata/2.root.json"] = repository.served["/metadata/3.root.json"]
    device = Device(repository)
    refuses(device, "version 2")
    assert device.versions() == {"root": 1}


@pytest.mark.parametrize("status", [403, 404])
def test_a_root_that_is_not_there_means_that_this_is_the_newest(repository, status):
    repository.instead["/metadata/2.root.json"] = status
    Device(repository).refresh()


def test_a_root_that_the_mirror_cannot_give_now_ends_the_update(repository):
    repository.instead["/metadata/2.root.json"] = 500
    device = Device(repository)
    refuses(device, "500")
    assert device.versions() == {"root": 1}


@pytest.mark.parametrize(
    "damage",
    [
        lambda root: root["signed"].pop("version"),
        lambda root: root["signatures"][0].update(sig="00" * 64),
        lambda root: root["signatures"].clear(),
        lambda root: root["signed"].update(spec_version="2.0.0"),
    ],
)
def test_a_first_root_that_is_not_valid_asks_for_nothing(repository, damage):
    root = json.loads(repository.first_root)
    damage(root)
    device = Device(repository, root=json.dumps(root).encode())
    refuses(device)
    assert device.asked() == []


# keys, threshold and signatures of each version; whether the last one is taken
ROTATIONS = {
    "key replaced": ([([1], 1, [1]), ([2], 1, [2, 1]), ([2], 1, [2])], True),
    "foreign signatures beside": ([([1], 1, [3, 1]), ([2], 1, [3, 2, 1, 4]), ([2], 1, [2, 4])], True),
    "other three of five": ([([0, 1, 2, 3, 4], 3, [0, 2, 4]), ([0, 1, 2, 3, 4], 3, [1, 3, 4])], True),
    "one of five replaced": ([([0, 1, 2, 3, 4], 3, [0, 2, 4]), ([0, 1, 3, 4, 5], 3, [0, 4, 1])], True),
    "all replaced": ([([0, 1, 2], 2, [0, 1]), ([5, 6, 7], 2, [0, 1, 5, 6]), ([5, 6, 7], 2, [6, 7])], True),
    "threshold raised": ([([1, 2], 1, [1]), ([1, 2], 2, [1, 2])], True),
    "threshold lowered": ([([1, 2], 2, [1, 2]), ([1, 2], 1, [1, 2]), ([1, 2], 1, [2])], True),
    "not by the old key": ([([1], 1, [1]), ([2], 1, [2, 3])], False),
    "not by the new key": ([([1], 1, [1]), ([2], 1, [1, 3])], False),
    "too few of the new": ([([0, 1, 2], 2, [0, 1]), ([2, 3, 4], 2, [0, 1, 2])], False),
    "too few of the old": ([([0, 1, 2], 2, [0, 1]), ([2, 3, 4], 2, [2, 3, 4])], False),
    "new threshold not reached": ([([1, 2], 1, [1]), ([1, 2], 2, [2])], False),
    "old threshold not reached": ([([1, 2], 2, [1, 2]), ([1, 2], 1, [1])], False),
}


@pytest.mark.parametrize(("versions", "is_taken"), ROTATIONS.values(), ids=ROTATIONS)
def test_a_new_root_needs_both_the_old_and_the_new_keys(repository, versions, is_taken):
    keys = [CryptoSigner.generate_ed25519() for _ in range(8)]
    repository.drop_version("root", 0)
    for held, threshold, signing in versions:
        role = repository.root.roles["root"]
        role.keyids.clear()
        role.threshold = threshold
        for index in held:
            repository.root.add_key(keys[index].public_key, "root")
        repository.signers["root"] = [keys[index] for index in signing]
        repository.publish("root")
    device = Device(repository, root=repository.served["/metadata/1.root.json"])
    if is_taken:
        device.refresh()
    else:
        refuses(device, "signed by")
    newest = len(versions) if is_taken else len(versions) - 1
    assert device.kept.read("root") == repository.served[f"/metadata/{newest}.root.json"]


def test_an_expired_root_is_kept_and_nothing_else_is_loaded(repository):
    device = Device(repository)
    repository.root.expires = NOW - timedelta(days=1)
    repository.publish("root")
    refuses(device, "expired")
    assert device.versions() == {"root": 2}
    repository.root.expires = NOW + timedelta(days=1)
    repository.publish("root")
    device.refresh()
    assert device.versions()["root"] == 3


# -- signatures of the others ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ONLINE)
def test_a_role_signed_by_a_key_that_root_does_not_name_is_refused(repository, role):
    repository.signers[role] = [CryptoSigner.generate_ed25519()]
    repository.publish(*ONLINE)
    device = Device(repository)
    refuses(device, "signed by 0/1")
    assert role not in device.versions()


@pytest.mark.parametrize("role", ONLINE)
def test_a_threshold_counts_different_keys(repository, role):
    device = Device(repository)
    repository.root.roles[role].threshold = 2
    repository.publish("root", *ONLINE)
    refuses(device, "signed by 1/2")
    signature = json.loads(repository.signed(role))["signatures"][0]
    version = repository.roles[role].signed.version
    path = "/metadata/timestamp.json" if role == "timestamp" else f"/metadata/{version}.{role}.json"
    twice = json.loads(repository.served[path])
    twice["signatures"] = [signature, signature]
    repository.instead[path] = json.dumps(twice).encode()
    refuses(device)
    repository.instead.clear()
    repository.new_key(role)
    repository.publish("root", *ONLINE)
    device.refresh()


def test_one_key_under_many_ids_counts_once(repository):
    """Its id is not the hash of the key there; a device need not check that, but must not be fooled by it."""
    device = Device(repository)
    (signer,) = repository.signers["snapshot"]
    for index in range(3):
        repository.root.add_key(renamed(signer.public_key, f"{index:064x}"), "snapshot")
    repository.root.roles["snapshot"].threshold = 3
    repository.publish("root", *ONLINE)
    document = json.loads(repository.served["/metadata/2.snapshot.json"])
    signature = document["signatures"][0]["sig"]
    document["signatures"] += [{"keyid": f"{index:064x}", "sig": signature} for index in range(3)]
    repository.instead["/metadata/2.snapshot.json"] = json.dumps(document).encode()
    refuses(device, "signed by 1/3")


def test_keys_that_root_lists_but_nobody_signed_with_do_not_count(repository):
    device = Device(repository)
    for _ in range(4):
        repository.root.add_key(CryptoSigner.generate_ed25519().public_key, "snapshot")
    repository.root.roles["snapshot"].threshold = 2
    repository.root.roles["snapshot"].keyids.append("ab" * 32)
    repository.publish("root", *ONLINE)
    refuses(device, "signed by 1/2")


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsassa-pss", "rsa-pkcs1v15"])
def test_keys_of_every_scheme_verify_and_their_signatures_over_other_bytes_do_not(repository, kind):
    for role in ("root", *ONLINE):
        repository.new_key(role, of_kind(kind))
        repository.root.roles[role].threshold = 2
    repository.publish("root", *ONLINE)
    repository.publish(*ONLINE)
    device = Device(repository)
    device.refresh()
    assert device.versions() == {"root": 2, "timestamp": 3, "snapshot": 3, "targets": 3}
    repository.publish(*ONLINE)
    repository.instead["/metadata/timestamp.json"] = repository.served["/metadata/timestamp.json"].replace(
        b'"version":4', b'"version":5'
    )
    refuses(device, "signed by 0/2")


def test_an_ecdsa_key_with_its_old_type_name_verifies(repository):
    signer = CryptoSigner.generate_ecdsa()
    told = {**signer.public_key.to_dict(), "keytype": "ecdsa-sha2-nistp256"}
    signer = CryptoSigner(signer._private_key, Key.from_dict(signer.public_key.keyid, told))
    repository.rotate("targets")
    repository.root.roles["targets"].keyids.clear()
    repository.signers["targets"].clear()
    repository.new_key("targets", signer)
    repository.publish("root", *ONLINE)
    Device(repository).refresh()


# -- rollback, freezing, mixing --------------------------------------------------------------------------------------


def test_an_older_timestamp_is_refused(repository):
    repository.publish("timestamp")
    device = Device(repository)
    device.refresh()
    repository.drop_version("timestamp", 1)
    repository.publish("timestamp", bump=False)
    refuses(device, "must be >=")
    assert device.versions()["timestamp"] == 2


def test_a_timestamp_of_the_same_version_with_other_content_changes_nothing(repository):
    device = Device(repository)
    device.refresh()
    before = device.kept.read("timestamp")
    repository.timestamp.snapshot_meta.version = 100
    repository.publish("timestamp", bump=False)
    device.asked()
    device.refresh()
    assert device.kept.read("timestamp") == before
    assert device.asked() == ["2.root", "timestamp"]


@pytest.mark.parametrize("with_hashes", [False, True])
def test_a_timestamp_that_names_an_older_snapshot_is_refused(repository, with_hashes):
    repository.with_hashes = with_hashes
    repository.publish("snapshot", "timestamp")
    device = Device(repository)
    device.refresh()
    repository.drop_version("snapshot", 1)
    repository.publish("snapshot", bump=False)
    repository.publish("timestamp")
    refuses(device, "snapshot version must be >=")
    assert device.versions()["snapshot"] == 2
    assert device.versions()["timestamp"] == 2


@pytest.mark.parametrize("with_hashes", [False, True])
def test_a_snapshot_that_lists_older_targets_is_refused(repository, with_hashes):
    repository.with_hashes = with_hashes
    repository.publish(*ONLINE)
    device = Device(repository)
    device.refresh()
    repository.drop_version("targets", 1)
    repository.publish("targets", bump=False)
    repository.publish("snapshot", "timestamp")
    refuses(device, "targets.json version")
    assert device.versions()["snapshot"] == 2
    assert device.versions()["targets"] == 2


def test_a_snapshot_that_lists_a_role_no_longer_is_refused(repository):
    repository.delegate("A")
    repository.publish("A", *ONLINE)
    device = Device(repository)
    device.refresh()
    del repository.snapshot.meta["A.json"]
    repository.publish("snapshot", "timestamp")
    refuses(device, "A.json")


def test_a_snapshot_of_another_version_than_the_timestamp_names_is_refused(repository):
    repository.timestamp.snapshot_meta.version = 2
    repository.publish("timestamp", bump=False)
    repository.served["/metadata/2.snapshot.json"] = repository.served["/metadata/1.snapshot.json"]
    device = Device(repository)
    refuses(device, "snapshot version 2")
    assert device.versions() == {"root": 1, "timestamp": 1}


def test_targets_of_another_version_than_the_snapshot_lists_are_refused(repository):
    device = Device(repository)
    device.refresh()
    repository.snapshot.meta["targets.json"].version = 2
    repository.publish("snapshot", "timestamp")
    repository.served["/metadata/2.targets.json"] = repository.served["/metadata/1.targets.json"]
    refuses(device, "targets v2")
    assert device.versions()["targets"] == 1


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_metadata_that_has_not_the_listed_hash_is_refused(repository, role):
    repository.with_hashes = True
    device = Device(repository)
    repository.publish(*ONLINE)
    document = json.loads(repository.served[f"/metadata/2.{role}.json"])
    repository.instead[f"/metadata/2.{role}.json"] = json.dumps(document, indent=1).encode()
    refuses(device)
    assert role not in device.versions()


def test_an_outdated_snapshot_kept_here_guards_even_when_hashes_no_longer_match_it(repository):
    repository.with_hashes = True
    device = Device(repository)
    device.refresh()
    repository.publish(*ONLINE)
    device.refresh()
    assert device.versions()["snapshot"] == 2


@pytest.mark.parametrize("role", ONLINE)
def test_expired_metadata_is_not_taken(repository, role):
    device = Device(repository)
    device.refresh()
    repository.roles[role].signed.expires = NOW - timedelta(seconds=1)
    repository.publish(*ONLINE)
    refuses(device, "expired")
    assert device.versions()[role] == 1


@pytest.mark.parametrize("role", ONLINE)
def test_what_expired_here_meanwhile_is_replaced_by_something_newer_and_else_not_used(repository, role):
    repository.roles[role].signed.expires = NOW + timedelta(days=7)
    repository.publish(*ONLINE)
    device = Device(repository)
    device.refresh()
    device.now = NOW + timedelta(days=18)
    refuses(device, "expired")
    repository.roles[role].signed.expires = NOW + timedelta(days=21)
    repository.publish(*ONLINE)
    device.refresh()
    assert device.versions()[role] == 3


def test_time_is_what_the_caller_says(repository):
    device = Device(repository)
    device.now = repository.expires + timedelta(days=1)
    refuses(device, "expired")
    device.now = NOW - timedelta(days=20_000)
    device.refresh()


@pytest.mark.parametrize(
    ("rotated", "set_back"),
    [("timestamp", "timestamp"), ("snapshot", "targets"), ("both", "snapshot")],
)
def test_versions_driven_up_by_a_stolen_key_come_down_with_new_keys(repository, rotated, set_back):
    repository.drop_version(set_back, 99_999)
    repository.publish(*ONLINE)
    device = Device(repository)
    device.refresh()
    assert device.versions()[set_back] == 100_000
    for role in ("timestamp", "snapshot") if rotated == "both" else (rotated,):
        repository.rotate(role)
    repository.publish("root")
    repository.drop_version(set_back, 1)
    repository.publish(*ONLINE)
    device.refresh()
    assert device.versions()[set_back] == 2


# -- what a mirror sends ---------------------------------------------------------------------------------------------

HUGE = b'{"signed": "' + b"x" * 6_000_000


@pytest.mark.parametrize("path", ["2.root", "timestamp", "2.snapshot", "2.targets"])
@pytest.mark.parametrize(
    "instead", [404, 500, b"", b"no json", b"{}", b"[" * 100_000, HUGE], ids=lambda it: str(it)[:9]
)
def test_a_mirror_that_sends_something_else_changes_nothing(repository, path, instead):
    device = Device(repository)
    device.refresh()
    before = {role: device.kept.read(role) for role in ("root", *ONLINE)}
    repository.publish(*ONLINE)
    if path == "2.root":
        if instead == 404:
            pytest.skip("that is the ordinary answer")
        repository.served["/metadata/2.root.json"] = b""
    repository.instead[f"/metadata/{path}.json"] = instead
    refuses(device)
    role = path.rpartition(".")[2]
    assert device.kept.read(role) == before[role]


def test_no_more_is_read_than_the_timestamp_signed(repository):
    repository.with_hashes = True
    repository.publish(*ONLINE)
    data = repository.served["/metadata/2.snapshot.json"]
    repository.instead["/metadata/2.snapshot.json"] = data + b" "
    refuses(Device(repository), "at most")


@pytest.mark.parametrize("version", ["1", "1.0", "1.0.34", "1.99.1"])
def test_minor_versions_of_the_specification_are_taken(repository, version):
    repository.timestamp.spec_version = version if version != "1" else "1.0"
    repository.publish("timestamp")
    Device(repository).refresh()


@pytest.mark.parametrize("version", ["0.9", "2.0.0", "one", "1", "1.2.3.4"])
@pytest.mark.parametrize("role", ["root", *ONLINE])
def test_other_versions_of_the_specification_are_refused(repository, version, role):
    repository.roles[role].signed.spec_version = version
    repository.publish("root", *ONLINE)
    device = Device(repository)
    refuses(device)
    assert device.versions().get(role) == (1 if role == "root" else None)


@pytest.mark.parametrize(("role", "other"), [("timestamp", "snapshot"), ("2.snapshot", "targets")])
def test_one_role_does_not_pass_for_another(repository, role, other):
    repository.publish(*ONLINE)
    repository.instead[f"/metadata/{role}.json"] = repository.served[f"/metadata/2.{other}.json"]
    refuses(Device(repository))


# -- what lies in the folder -----------------------------------------------------------------------------------------


def test_strange_files_in_the_folder_are_in_nobodys_way(repository):
    device = Device(repository)
    (device.metadata / "notes.txt").write_text("hello")
    (device.metadata / "other.json").write_text("{}")
    (device.metadata / "folder.json").mkdir()
    (device.metadata / ".timestamp.json.new").write_bytes(b"half")
    device.refresh()
    assert (device.metadata / "notes.txt").read_text() == "hello"


@pytest.mark.parametrize("role", ONLINE)
@pytest.mark.parametrize("data", [b"", b"\x00\xff", b"{}"])
def test_what_is_damaged_here_is_fetched_again(repository, role, data):
    device = Device(repository)
    device.refresh()
    (device.metadata / f"{role}.json").write_bytes(data)
    device.refresh()
    assert device.versions() == {"root": 1, "timestamp": 1, "snapshot": 1, "targets": 1}


@pytest.mark.parametrize("role", ONLINE)
def test_what_is_missing_here_is_fetched_again(repository, role):
    device = Device(repository)
    device.refresh()
    (device.metadata / f"{role}.json").unlink()
    device.refresh()
    assert role in device.versions()


# -- delegations -----------------------------------------------------------------------------------------------------

# who delegates to whom (in order; ! ends the search), and the order in which a path is looked for
GRAPHS = {
    "one": ("targets>A", "A"),
    "two": ("targets>A targets>B", "A B"),
    "depth before breadth": ("targets>A targets>B A>C A>D", "A C D B"),
    "three deep": ("targets>A targets>B A>C C>D", "A C D B"),
    "terminating": ("targets>A targets>B A>C! A>D", "A C"),
    "terminating, with children": ("targets>A targets>B A>C! C>D", "A C D"),
    "a circle": ("targets>A targets>B B>C C>D D>B", "A B C D"),
    "twice the same": ("targets>A targets>B B>C A>C", "A C B"),
}


@pytest.mark.parametrize(("edges", "order"), GRAPHS.values(), ids=GRAPHS)
def test_roles_are_searched_depth_first_each_once(repository, edges, order):
    signer = CryptoSigner.generate_ed25519()
    for edge in edges.split():
        by, _, to = edge.partition(">")
        repository.delegate(to.rstrip("!"), by=by, terminating=to.endswith("!"), signer=signer)
    repository.publish(*order.split(), bump=False)
    for role in set(repository.roles) - {"root", *ONLINE} - set(order.split()):
        repository.publish(role, bump=False)
    repository.publish(*ONLINE)
    device = Device(repository)
    with pytest.raises(LookupError):
        device.download("missing")
    assert device.asked()[4:] == [f"1.{role}" for role in order.split()]


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("top", []),
        ("README.md", ["A"]),
        ("releases/x/x1", ["B", "C"]),
        ("releases/y/y1.zip", ["B", "D"]),
        ("releases/y/y1.tar", None),
        ("releases/z/z1.zip", None),
        ("releases/x/deep/x1", None),
        ("Ärger und Öl/ß", ["U"]),
    ],
)
def test_a_role_speaks_only_for_the_paths_that_are_delegated_to_it(repository, path, asked):
    repository.delegate("A", paths=["*.md", "*.txt"])
    repository.delegate("B", paths=["releases/*/*"])
    repository.delegate("U", paths=["Ärger*/*"])
    repository.delegate("C", by="B", paths=["releases/x/*"])
    repository.delegate("D", by="B", paths=["releases/y/*.zip"])
    for role in ("targets", "A", "B", "C", "D", "U"):
        if role != "targets" or path == "top":
            repository.add(path, b"by " + role.encode(), role=role)
    if path.endswith((".tar", "z1.zip", "deep/x1")):
        for role in ("B", "C"):
            repository.targets(role).targets.clear()
    if path.startswith("releases"):
        repository.targets("B").targets.clear()
    repository.publish("A", "B", "C", "D", "U", *ONLINE)
    device = Device(repository)
    if asked is None:
        with pytest.raises(LookupError):
            device.download(path)
    else:
        (got,) = device.download(path)
        assert got == b"by " + (asked[-1] if asked else "targets").encode()


def test_hashed_bins_hold_each_path_in_one_role(repository):
    repository.delegate_bins(3)
    bins = repository.targets().delegations.succinct_roles
    assert isinstance(bins, SuccinctRoles)
    paths = [f"file {index}" for index in range(12)]
    for path in paths:
        repository.add(path, path.encode(), role=bins.get_role_for_target(path))
    repository.publish(*bins.get_roles(), *ONLINE)
    device = Device(repository)
    assert device.download(*paths) == [path.encode() for path in paths]
    with pytest.raises(LookupError):
        device.download("missing")


def test_path_hash_prefixes_hold_each_path_in_one_role(repository):
    repository.delegate("low", prefixes=[f"{digit:x}" for digit in range(8)])
    repository.delegate("high", prefixes=[f"{digit:x}" for digit in range(8, 16)])
    for index in range(12):
        path = f"file-{index}"
        role = next(name for name, _ in repository.targets().delegations.get_roles_for_target(path))
        repository.add(path, path.encode(), role=role)
    repository.publish("low", "high", *ONLINE)
    assert Device(repository).download("file-3", "file-7") == [b"file-3", b"file-7"]


@pytest.mark.parametrize(
    ("role", "as_asked"),
    [("?", "%3F"), ("#", "%23"), ("/abs", "%2Fabs"), ("../up", "..%2Fup"), ("a b", "a%20b"), ("ö", "%C3%B6"),
     ("%41", "%2541"), (".", ".")],
)  # fmt: skip
def test_a_roles_name_leads_nowhere(repository, role, as_asked):
    repository.delegate(role)
    repository.publish(role, *ONLINE)
    repository.served[f"/metadata/2.{as_asked}.json"] = repository.served[f"/metadata/2.{role}.json"]
    device = Device(repository)
    with pytest.raises(LookupError):
        device.download("missing")
    assert f"2.{as_asked}" in device.asked()
    assert len(device.versions()) == 5
    assert {path.parent for path in repository.folder.rglob("*.json")} == {device.metadata}


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets", ""])
def test_the_name_of_a_top_level_role_cannot_be_delegated(repository, role):
    repository.delegate("A")
    repository.publish("A", *ONLINE)
    document = json.loads(repository.served["/metadata/2.targets.json"])
    document["signed"]["delegations"]["roles"][0]["name"] = role
    signer = repository.signers["targets"][0]
    signature = signer.sign(encode_canonical(document["signed"]).encode())
    document["signatures"] = [{"keyid": signature.keyid, "sig": signature.signature}]
    repository.instead["/metadata/2.targets.json"] = json.dumps(document).encode()
    refuses(Device(repository))


def test_a_name_that_two_delegate_to_is_verified_for_each_of_them(repository):
    """The role is served signed by the key that A trusts; what B delegates to it, it may not speak for."""
    repository.delegate("A", paths=["a/*"])
    repository.delegate("B", paths=["b/*"])
    repository.delegate("C", by="A", paths=["a/*"])
    other = CryptoSigner.generate_ed25519()
    repository.delegate("C", by="B", paths=["b/*"], signer=other)
    repository.signers["C"].remove(other)
    repository.add("a/file", b"of A", role="C")
    repository.add("b/file", b"stolen", role="C")
    repository.publish("C", "A", "B", *ONLINE)
    device = Device(repository)
    assert device.download("a/file") == [b"of A"]
    for paths in (("b/file",), ("a/file", "b/file")):
        with pytest.raises(MetadataRefusedError, match="signed by 0/1"):
            device.download(*paths)
    assert device.download("a/file") == [b"of A"]


def test_a_delegation_without_a_snapshot_entry_ends_the_search(repository):
    repository.delegate("A")
    repository.delegate("B")
    repository.add("file", b"data", role="B")
    repository.publish("B", *ONLINE)
    with pytest.raises(MetadataRefusedError, match="does not list"):
        Device(repository).download("file")


def test_an_expired_delegated_role_speaks_for_nothing(repository):
    repository.delegate("A")
    repository.targets("A").expires = NOW + timedelta(days=7)
    repository.add("first", b"1", role="A")
    repository.add("second", b"2", role="A")
    repository.publish("A", *ONLINE)
    device = Device(repository)
    assert device.download("first") == [b"1"]
    device.now = NOW + timedelta(days=18)
    with pytest.raises(MetadataRefusedError, match="expired"):
        device.download("second")
    repository.targets("A").expires = NOW + timedelta(days=21)
    repository.publish("A", "snapshot", "timestamp")
    assert device.download("second") == [b"2"]


def test_no_more_roles_than_the_bound_are_asked(repository):
    signer = CryptoSigner.generate_ed25519()
    names = [f"role{index}" for index in range(40)]
    for name in names:
        repository.delegate(name, signer=signer)
        repository.publish(name, bump=False)
    repository.publish(*ONLINE)
    device = Device(repository)
    with pytest.raises(LookupError):
        device.download("missing")
    assert len([name for name in device.asked() if "role" in name]) == clients.MAX_ROLES


def test_delegated_rollback_is_refused(repository):
    repository.delegate("A")
    repository.publish("A", *ONLINE)
    repository.publish("A", "snapshot", "timestamp")
    device = Device(repository)
    with pytest.raises(LookupError):
        device.download("missing")
    repository.drop_version("A", 1)
    repository.publish("A", bump=False)
    repository.publish("snapshot", "timestamp")
    refuses(device, "A.json version")
