"""From a publisher's folder through the fleet's to a device: keys, thresholds, rotation, what a fleet refuses."""

import hashlib
import os
import shutil
import stat
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from lying_repository import Device as BaseDevice
from lying_repository import Repository
from securesystemslib.signer import CryptoSigner

from device_agent.tuf import child
from device_agent.tuf.kept import Kept
from device_agent.tuf.question import Listed, Question
from edgekit.errors import ConflictError, NotFoundError, SignatureRefusedError, UsageError
from edgekit.trust.target import DeltaTarget, Target
from fleet import api
from fleet.client import keys_cli
from fleet.tuf import documents, ring
from fleet.tuf.home import Home
from fleet.tuf.online import Online
from fleet.tuf.ring import Ring

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(ring, "SCRYPT_N", 1 << 10)


class World:
    """A publisher, a fleet whose static files are served over HTTP, and devices."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mirror = Repository(folder / "mirror")
        self.online = Online(folder / "fleet")
        self.home = self.publisher("home")
        self.now = NOW

    def publisher(self, name: str, passphrase: bytes = b"correct horse") -> Home:
        return Home(Ring(self.folder / name, lambda: passphrase))

    def upload(self, home: Home | None = None) -> None:
        whole = (home or self.home).documents()
        there = self.online.documents()
        newest = there.root.version if there is not None else 0
        roots = tuple(documents.encode(one) for one in whole.roots if one.signed.version > newest)
        self.online.offer(roots, {role: documents.encode(one) for role, one in whole.roles.items()}, self.now)

    def start(self) -> "World":
        self.home.init(self.online.key, self.now)
        self.upload()
        return self

    def publish(self, name: str = "digits", version: str = "1.0.0") -> Target:
        target = bundle(name, version)
        self.home.add(target, self.now)
        self.upload()
        return target

    def device(self, name: str = "device") -> "Device":
        return Device(self, name)


class Device(BaseDevice):
    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.repository = world.mirror
        self.metadata = world.folder / name
        self.files = world.folder / f"{name}-files"
        self.kept = Kept(self.metadata)
        self.kept.start(world.online.root().encode())

    def finds(self, path: str) -> bool:
        files = (self.world.online.metadata).glob("*.json")
        self.repository.served = {f"/metadata/{file.name}": file.read_bytes() for file in files}
        self.now = self.world.now
        client = self.client()
        client.refresh()
        return client.find(path) is not None


def bundle(name="digits", version="1.0.0", profile="pi"):
    return Target(name, version, profile, 100, hashlib.sha256(f"{name}{version}".encode()).hexdigest())


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.mirror.close()


# -- the ordinary day ------------------------------------------------------------------------------------------------


def test_a_published_bundle_is_found_by_a_device_that_knows_only_the_first_root(world):
    world.start()
    device = world.device()
    target = world.publish()
    assert device.finds(target.path)
    other = world.publish("speech", "2.0.0")
    assert device.finds(other.path)
    assert device.finds(target.path)
    assert not device.finds("digits/9.9.9/pi/nothing.edgekit")


def test_a_device_loads_the_metadata_of_its_own_model_only(world):
    world.start()
    device = world.device()
    target = world.publish()
    world.publish("speech", "2.0.0")
    device.finds(target.path)
    assert sorted(device.versions()) == ["model.digits", "root", "snapshot", "targets", "timestamp"]


def test_publishing_the_same_again_changes_nothing(world):
    world.start().publish()
    assert not world.home.add(bundle(), NOW)


def test_snapshot_and_timestamp_are_signed_at_half_life_and_survive_years(world):
    world.start()
    device = world.device()
    target = world.publish()
    assert not world.online.renew(world.now)
    world.now += documents.TIMESTAMP_LIFE / 2
    assert world.online.renew(world.now)
    for _ in range(120):
        world.now += timedelta(days=2)
        world.online.renew(world.now)
        assert device.finds(target.path)


def test_a_fleet_that_was_off_for_a_month_goes_on(world):
    world.start()
    device = world.device()
    target = world.publish()
    assert device.finds(target.path)
    world.now += timedelta(days=30)
    assert world.online.renew(world.now)
    assert device.finds(target.path)


def test_a_fleet_restored_from_a_backup_does_not_fall_behind(world, tmp_path):
    world.start()
    device = world.device()
    target = world.publish()
    before = {path.name: path.read_bytes() for path in world.online.metadata.iterdir()}
    for _ in range(3):
        world.now += timedelta(days=2)
        world.online.renew(world.now)
    assert device.finds(target.path)
    for path in world.online.metadata.iterdir():
        path.unlink()
    for name, data in before.items():
        (world.online.metadata / name).write_bytes(data)
    world.now += timedelta(days=2)
    world.online.renew(world.now)
    assert device.finds(target.path)


def test_an_online_document_lost_or_damaged_is_made_anew(world):
    world.start()
    device = world.device()
    target = world.publish()
    (world.online.metadata / "timestamp.json").unlink()
    world.now += timedelta(minutes=1)
    assert world.online.renew(world.now)
    assert device.finds(target.path)


# -- rotation and thresholds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["root", "targets", "model.digits"])
def test_a_device_follows_new_keys_of_every_offline_role(world, role):
    world.start()
    device = world.device()
    target = world.publish()
    assert device.finds(target.path)
    for _ in range(2):
        assert world.home.rotate(role, world.now) == []
        world.upload()
        world.now += timedelta(minutes=1)
        assert device.finds(target.path)


def test_a_device_follows_a_new_online_key(world):
    world.start()
    device = world.device()
    target = world.publish()
    assert device.finds(target.path)
    successor = world.online.next_key()
    world.home.rotate("online", world.now, add=[successor])
    world.upload()
    assert world.online.key.keyid == successor.keyid
    assert device.finds(target.path)
    assert Online(world.folder / "fleet").key.keyid == successor.keyid


def test_a_key_that_was_replaced_signs_nothing_any_more(world):
    world.start().publish()
    stolen = world.publisher("home")
    old = {keyid: stolen.ring.signer(keyid) for keyid in stolen.documents().delegated["model.digits"].keyids}
    world.home.rotate("model.digits", world.now)
    world.upload()
    forged = stolen.documents().roles["model.digits"]
    documents.add_target(forged.signed, bundle("digits", "6.6.6"))
    documents.renew(forged, world.now)
    for signer in old.values():
        forged.sign(signer, append=True)
    with pytest.raises(SignatureRefusedError, match=r"signed by 0/1"):
        world.online.offer((), {"model.digits": documents.encode(forged)}, world.now)


def test_a_threshold_of_two_persons(world):
    other = world.publisher("other", b"another passphrase")
    theirs = other.ring.make("root")
    world.home.init(world.online.key, world.now, others=[theirs], threshold=2)
    with pytest.raises(NotFoundError):
        world.home.documents()
    pending = world.home.pending / "1.root.json"
    other.cosign(pending, world.now)
    with pytest.raises(UsageError, match="no key"):
        other.cosign(pending, world.now)
    assert world.home.complete() == ["root"]
    world.upload()
    target = world.publish()
    assert world.device().finds(target.path)
    # From now on every new root needs both.
    assert world.home.rotate("targets", world.now) == ["root", "targets"]
    with pytest.raises(ConflictError, match="waits for signatures"):
        world.home.sign(["root"], world.now)
    assert world.home.documents().root.version == 1
    other.cosign(world.home.pending / "2.root.json", world.now)
    assert sorted(world.home.complete()) == ["root", "targets"]
    world.upload()
    assert world.device("second").finds(target.path)


def test_a_threshold_that_cannot_be_reached_is_refused(world):
    with pytest.raises(ConflictError, match="threshold"):
        world.home.init(world.online.key, world.now, threshold=2)


def test_keys_can_be_added_and_removed(world):
    world.start()
    device = world.device()
    target = world.publish()
    backup = world.publisher("safe").ring.make("backup")
    world.home.rotate("root", world.now, add=[backup])
    assert len(world.home.documents().root.roles["root"].keyids) == 2
    world.home.rotate("root", world.now, remove=[backup.keyid])
    assert len(world.home.documents().root.roles["root"].keyids) == 1
    with pytest.raises(NotFoundError):
        world.home.rotate("root", world.now, remove=[backup.keyid])
    world.upload()
    assert device.finds(target.path)


# -- expiry ----------------------------------------------------------------------------------------------------------


def test_status_reminds_before_a_role_expires_and_signing_gives_it_a_whole_life(world):
    world.start().publish()
    assert [row.remark for row in world.home.status(NOW)] == ["", "", ""]
    late = NOW + documents.OFFLINE_LIFE - timedelta(days=10)
    assert {row.remark for row in world.home.status(late)} == {"expires in 10 days: sign it"}
    assert world.home.sign(["root", "targets", "model.digits"], late) == []
    assert [row.remark for row in world.home.status(late)] == ["", "", ""]
    assert "EXPIRED" in world.home.status(late + timedelta(days=400))[0].remark
    world.now = late
    device = world.device()
    world.upload()
    assert device.finds(bundle().path)


def test_a_fleet_says_once_a_day_what_expires(world, caplog):
    world.start()
    world.now = NOW + documents.OFFLINE_LIFE - timedelta(days=10)
    for hours in (0, 1, 25):
        world.online.renew(world.now + timedelta(hours=hours))
    assert len([record for record in caplog.records if "root expires" in record.message]) == 2


# -- what is blocked ---------------------------------------------------------------------------------------------------


def test_what_is_withdrawn_no_device_finds_any_more_and_the_rest_it_does(world):
    world.start()
    old, gone, other = world.publish(), world.publish(version="1.1.0"), world.publish("speech", "1.1.0")
    device = world.device()
    assert device.finds(gone.path)
    before = world.home.documents().roles["model.speech"].signed.version
    assert world.home.withdraw(["digits@1.1.0", "digits@9.9.9", "speech@1.1"], world.now) == []
    world.upload()
    assert [device.finds(target.path) for target in (old, gone, other)] == [True, False, True]
    assert world.home.documents().roles["model.speech"].signed.version == before, (
        "signed only where it must be"
    )
    world.publish(version="1.1.0")
    assert device.finds(gone.path), "what was a mistake is published again"


def test_one_bundle_is_withdrawn_by_its_digest(world):
    world.start()
    old, gone = world.publish(), world.publish(version="1.1.0")
    assert world.home.still_listed([gone.sha256, "0" * 64]) == {"model.digits": {gone.path: gone.sha256}}
    world.home.withdraw([gone.sha256], world.now)
    assert [*world.home.documents().roles["model.digits"].signed.targets] == [old.path]
    assert world.home.still_listed([gone.sha256]) == {}


def test_the_status_names_what_is_blocked_and_listed_still(world):
    world.start()
    gone = world.publish()
    world.publish("speech", "1.0.0")
    assert not any(row.remark for row in world.home.status(world.now, ["digits@9.9.9"]))
    rows = {row.role: row for row in world.home.status(world.now, ["digits@1.0.0"])}
    assert rows["model.digits"].blocked == (gone.path,)
    assert "lists what is blocked, digits@1.0.0" in rows["model.digits"].remark
    assert [row.role for row in rows.values() if row.remark] == ["model.digits"]
    world.home.withdraw(["digits@1.0.0"], world.now)
    assert not any(row.remark for row in world.home.status(world.now, ["digits@1.0.0"]))


class _Fleet:
    """What `edgekit keys` asks of a fleet."""

    def __init__(self, world: World, *blocked: str) -> None:
        self.world = world
        self.blocked = lambda: [api.BlockedView(subject, "", "user:ada", NOW) for subject in blocked]

    def metadata(self) -> api.MetadataView:
        whole = self.world.online.documents()
        roles = {role: documents.encode(one).decode() for role, one in whole.roles.items()}
        roots = tuple(documents.encode(one).decode() for one in whole.roots)
        return api.MetadataView(api.PublicKey("", {}), roots, roles)

    def offer(self, new: api.NewMetadata) -> None:
        roles = {role: text.encode() for role, text in new.roles.items()}
        self.world.online.offer(tuple(text.encode() for text in new.roots), roles, self.world.now)


@pytest.fixture
def keys(world, monkeypatch):
    """`edgekit keys` on this world's folder and a fleet that has blocked digits@1.0.0."""
    world.now = datetime.now(UTC)
    monkeypatch.setenv(ring.PASSPHRASE, "correct horse")
    monkeypatch.setattr(keys_cli, "_fleet", lambda _: nullcontext(_Fleet(world, "digits@1.0.0")))

    def run(*words: str, **more: str) -> Result:
        return CliRunner().invoke(keys_cli.main, [words[0], str(world.folder / "home"), *words[1:]], **more)

    return run


def test_withdrawing_shows_what_goes_and_asks(world, keys):
    world.start()
    gone = world.publish()
    device = world.device()
    told = keys("status")
    assert (told.exit_code, "digits@1.0.0" in told.output) == (3, True)
    refused = keys("withdraw", input="n\n")
    assert (refused.exit_code, gone.path in refused.output) == (1, True)
    assert device.finds(gone.path)
    done = keys("withdraw", input="y\n")
    assert (done.exit_code, "the fleet has model.digits" in done.output) == (0, True)
    assert not device.finds(gone.path)
    assert keys("status").exit_code == 0
    assert "nothing of that is listed" in keys("withdraw").output


def test_withdrawing_by_name_or_with_yes_asks_nothing(world, keys):
    world.start()
    named, blocked = world.publish(version="1.1.0"), world.publish()
    device = world.device()
    assert keys("withdraw", "digits@1.1.0").exit_code == 0
    assert not device.finds(named.path)
    assert device.finds(blocked.path)
    assert keys("withdraw", "--yes").exit_code == 0
    assert not device.finds(blocked.path)


# -- what a fleet refuses --------------------------------------------------------------------------------------------


def test_a_fleet_takes_no_root_that_does_not_trust_its_online_key(world):
    world.home.init(CryptoSigner.generate_ed25519().public_key, world.now)
    with pytest.raises(SignatureRefusedError, match="online key"):
        world.upload()
    assert world.online.root() == ""


def test_a_fleet_takes_no_second_first_root(world):
    world.start()
    other = world.publisher("other")
    other.init(world.online.key, world.now)
    with pytest.raises((ConflictError, SignatureRefusedError)):
        world.online.offer(
            tuple(documents.encode(one) for one in other.documents().roots),
            {role: documents.encode(one) for role, one in other.documents().roles.items()},
            world.now,
        )


def test_a_copy_that_is_out_of_date_is_refused_and_can_be_brought_up_to_date(world):
    world.start().publish()
    shutil.copytree(world.folder / "home", world.folder / "copy")
    copy = world.publisher("copy")
    world.publish(version="1.1.0")
    copy.add(bundle(version="1.2.0"), world.now)
    with pytest.raises(ConflictError, match="out of date"):
        world.upload(copy)
    for path in copy.metadata.glob("*.model.digits.json"):
        if int(path.name.split(".")[0]) > 2:
            path.unlink()
    copy.adopt(world.online.documents())
    copy.add(bundle(version="1.2.0"), world.now)
    world.upload(copy)
    device = world.device()
    assert all(device.finds(bundle(version=version).path) for version in ("1.0.0", "1.1.0", "1.2.0"))


@pytest.mark.parametrize("damage", [b"", b"{}", b"[" * 10_000, b"x" * 6_000_000])
def test_a_fleet_takes_nothing_that_is_no_metadata(world, damage):
    world.start()
    before = sorted(world.online.metadata.iterdir())
    with pytest.raises(SignatureRefusedError):
        world.online.offer((), {"targets": damage}, world.now)
    assert sorted(world.online.metadata.iterdir()) == before


@pytest.mark.parametrize("role", ["snapshot", "timestamp", "root", "../up", ".hidden"])
def test_a_publisher_brings_only_his_own_roles(world, role):
    world.start()
    with pytest.raises((ConflictError, SignatureRefusedError)):
        world.online.offer((), {role: documents.encode(world.home.documents().roles["targets"])}, world.now)


def test_a_model_role_speaks_only_for_its_model(world):
    world.start().publish()
    device = world.device()
    forged = world.home.documents().roles["model.digits"]
    documents.add_target(forged.signed, bundle("speech", "1.0.0"))
    documents.renew(forged, world.now)
    forged.sign(
        world.home.ring.signer(world.home.documents().delegated["model.digits"].keyids[0]), append=True
    )
    world.online.offer((), {"model.digits": documents.encode(forged)}, world.now)
    assert device.finds(bundle().path)
    assert not device.finds(bundle("speech", "1.0.0").path)


# -- keys on disk ----------------------------------------------------------------------------------------------------


def test_key_files_are_private_and_encrypted(world):
    world.start()
    files = [*(world.folder / "home" / "keys").iterdir(), world.folder / "home" / "ring.json"]
    assert len(files) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert {path.read_text().count('"kdf":"scrypt"') for path in files[:-1]} == {1}


def test_a_wrong_passphrase_signs_nothing(world):
    world.start()
    with pytest.raises(UsageError, match="passphrase"):
        world.publisher("home", b"wrong").sign(["targets"], world.now)


def test_a_key_that_others_may_read_is_refused(world):
    world.start()
    for path in (world.folder / "home" / "keys").iterdir():
        path.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        world.publisher("home").sign(["targets"], world.now)


def test_a_key_file_cannot_be_exchanged_for_another(world):
    world.start()
    root, targets = sorted((world.folder / "home" / "keys").iterdir())
    targets.write_bytes(root.read_bytes())
    with pytest.raises(UsageError, match="passphrase"):
        world.publisher("home").sign(["targets"], world.now)


def test_passphrases_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(ring.PASSPHRASE, raising=False)
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115, PTH123  # no terminal
    with pytest.raises(UsageError, match="which passphrase"):
        ring.passphrase(None)()
    monkeypatch.setenv(ring.PASSPHRASE, "from outside")
    assert ring.passphrase(None)() == b"from outside"
    file = tmp_path / "passphrase"
    file.write_text("first line\nsecond\n")
    assert ring.passphrase(file)() == b"first line"
    file.write_text("")
    with pytest.raises(UsageError, match="empty"):
        ring.passphrase(file)()


def test_a_token_without_its_library_is_told_in_a_sentence(world, monkeypatch):
    monkeypatch.delenv("PYKCS11LIB", raising=False)
    with pytest.raises(UsageError, match=r"pkcs11|PYKCS11LIB"):
        world.home.ring.make("root", "hsm:yubikey")
    with pytest.raises(UsageError, match="hsm:"):
        world.home.ring.make("root", "file:x")


def test_a_delta_is_listed_beside_its_bundle_and_given_to_who_is_to_run_that(world):
    world.start()
    first, second = world.publish(version="1.0.0"), bundle("digits", "2.0.0")
    made = DeltaTarget(second, first.sha256, 10, "d" * 64)
    assert world.home.add(second, world.now, [made])
    assert not world.home.add(second, world.now, [made])
    world.upload()
    assert world.device().finds(made.path)
    told = child.answer(
        Question(
            str(world.folder / "asking"), world.online.root(), f"{world.mirror.url}/metadata", ("127.0.0.1",), "",
            now=world.now, known=None, paths=(second.path, made.path),
        )
    )  # fmt: skip
    assert told.listed[made.path] == Listed(10, "d" * 64, first.sha256, "bsdiff40")
    assert world.online.is_delta("d" * 64, "digits", second.path)
    assert not world.online.is_delta("d" * 64, "digits", first.path)
    assert not world.online.is_delta("e" * 64, "digits", second.path)
    assert not world.online.is_delta("d" * 64, "speech", second.path)
