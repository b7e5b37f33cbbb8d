"""The power is cut at every point of a device's life, and the agent started on everything that the disk may hold then."""

import random
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import cut_judge
import pytest
from cut_device import FAILS_SELFTEST, Mark, real
from cut_disk import Disk, File, digest, materialise
from cut_states import operations, states

from device_agent.durable import Operation

SEED = 20260801
SHARE = 40
REAL_SHARE = 24


@pytest.fixture(scope="session")
def found(story):
    """All states, in the order of the trace."""
    return list(states(story.trace, story.root))


@pytest.fixture
def put(empty):
    """Makes a state's state folder, anew each time."""

    def make(state):
        folder = Path(tempfile.mkdtemp(dir=empty))
        materialise(state.tree, folder)
        return folder / "state"

    return make


def wrong_by_reading(state, put, fleet):
    root = put(state)
    wrong = cut_judge.read(root, state.promises, fleet)
    shutil.rmtree(root.parent)
    return wrong


def test_the_life_holds_all_that_a_device_does(story, fleet):
    """Were a part of it missing, nothing of that part would be proven."""
    kinds = {entry.kind for entry in story.trace if isinstance(entry, Operation)}
    assert kinds >= {
        "create", "cut", "write", "sync", "rename", "symlink", "unlink", "mkdir", "rmdir", "sync-folder"
    }  # fmt: skip
    steps = [entry.value for entry in story.trace if isinstance(entry, Mark) and entry.what == ("step",)]
    assert set(steps) >= {"fetch", "stage", "selftest", "probation", "idle", "failed", "rollback"}
    versions = {fleet.versions[entry.value] for entry in story.trace
                if isinstance(entry, Mark) and entry.what == ("committed",) and entry.value}  # fmt: skip
    assert versions == {"1", "2", "5", "6"}
    saved = {entry.what[1] for entry in story.trace if isinstance(entry, Mark) and entry.what[0] == "record"}
    assert saved >= {"identity.json", "key.json", "boot.json", "order.json", "machine.json"}
    # What is saved and not judged would be promised in vain.
    assert saved <= {*cut_judge.RECORDS, *cut_judge.OF_A_DEPLOYMENT}


def test_nothing_that_was_promised_is_lost_in_any_state(found, put, fleet, capsys):
    trouble = {}
    for state in found:
        if wrong := wrong_by_reading(state, put, fleet):
            trouble[state.point, state.digest[:12]] = wrong
    with capsys.disabled():
        points, trees = len({state.point for state in found}), len({state.digest for state in found})
        print(
            f"\npower cuts: {points} points, {len(found)} states with their promises, {trees} distinct disks"
        )
    assert trouble == {}


@pytest.mark.timeout(1800)
def test_the_agent_serves_and_comes_to_its_order_on_any_state(found, put, fleet, scratch, everything):
    distinct = list({state.digest: state for state in found}.values())
    chosen = distinct if everything else random.Random(SEED).sample(distinct, SHARE)
    trouble = {}
    for state in chosen:
        root = put(state)
        if wrong := cut_judge.run(root, state.promises, fleet, scratch):
            trouble[state.point, state.digest[:12]] = wrong
        shutil.rmtree(root.parent)
    assert trouble == {}


@pytest.mark.timeout(3600)
def test_without_any_one_sync_some_state_breaks_a_promise(story, found, put, fleet, everything, capsys):
    """Each sync is left out of the trace in turn; in the normal tests one of each place that syncs."""
    known = {state.key for state in found}
    places = defaultdict(list)
    for number in operations(story.trace, story.root):
        entry = story.trace[number]
        if entry.kind in ("sync", "sync-folder") and not is_beside_the_point(story, number):
            places[entry.kind, story.sites[number].place].append(number)
    needless = []
    with capsys.disabled():
        print()
        for (kind, place), numbers in sorted(places.items(), key=lambda item: item[0][1]):
            tried = numbers if everything else numbers[:1]
            broken = [breaks(story, number, known, put, fleet) for number in tried]
            needless += [(place, number) for number, why in zip(tried, broken, strict=True) if not why]
            print(f"{kind:11} {len(numbers):3} x {place}: {broken[0] or 'NOTHING BREAKS'}")
    assert needless == []


def is_beside_the_point(story, number):
    """Whether this one sync, of a place that syncs elsewhere too, decides nothing where it stands.

    Either the recorded life was cut before the job or write ended that the sync is part of (each ends with the
    machine's row being saved; before that, nobody was promised anything), or another thread happened to sync the same
    folder just then.
    """
    return is_cut_off(story.trace, number) or is_doubled(story, number)


def is_end(entry):
    return isinstance(entry, Mark) and entry.what in (("power",), ("record", "machine.json"))


def is_cut_off(trace, number):
    ends = (entry for entry in trace[number + 1 :] if is_end(entry))
    return next(ends, Mark(("none",), None)).what == ("power",)


def is_doubled(story, number):
    trace, sites = story.trace, story.sites
    first, last = number, number
    while first > 0 and not is_end(trace[first - 1]):
        first -= 1
    while last + 1 < len(trace) and not is_end(trace[last + 1]):
        last += 1
    same = trace[number]
    return any(
        trace[other] == same and sites[other].thread != sites[number].thread
        for other in range(first, last + 1)
        if other != number
    )


def breaks(story, number, known, put, fleet):
    """The first promise that is broken in a state which only leaving out this operation makes possible."""
    for state in states(story.trace, story.root, without=number):
        if state.key not in known and (wrong := wrong_by_reading(state, put, fleet)):
            return wrong[0]
    return ""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_real_processes_serve_the_last_good_model_without_a_broker(found, put, fleet, scratch, everything):
    """A seeded sample; the engine is real here, and nobody gives orders."""
    able = [
        state for state in {state.digest: state for state in found}.values()
        if state.promises.get(("committed",)) is not None
    ]  # fmt: skip
    chosen = random.Random(SEED).sample(able, REAL_SHARE if everything else 2)
    for state in chosen:
        root = put(state)
        agent = RealAgent(root, scratch / "enrolment.json")
        try:
            answer = real.wait_until(agent.asked, f"an answer at point {state.point}", 60)
            # One on probation serves on: that it breaks is seen only under load.
            assert not answer["version"].endswith(FAILS_SELFTEST)
        finally:
            assert agent.stop() == 0
        shutil.rmtree(root.parent)


class RealAgent:
    def __init__(self, root, enrolment):
        self.port = real.free_port()
        words = [sys.executable, "-m", "edgekit", "agent", "run", "--state", root, "--enrolment", enrolment,
                 "--http", f"127.0.0.1:{self.port}", "--profile", "x86-64-v3"]  # fmt: skip
        self.process = subprocess.Popen(list(map(str, words)), stderr=subprocess.DEVNULL)

    def asked(self):
        assert self.process.poll() is None, "the agent ended"
        answer = real.Client(self.port).post("/predict", {"input": real.digit_images(1)[0].tolist()})
        return answer.json if answer.status == 200 else None

    def stop(self):
        self.process.terminate()
        return self.process.wait(30)


# -- the model of the disk ------------------------------------------------------------------------------------------


def left(root, *made):
    """All states after these operations, as sets of (path, content)."""
    disk = Disk(root)
    for operation in (Operation("mkdir", root), Operation("sync-folder", root.parent), *made):
        disk.apply(operation)
    return {digest(tree): tree for tree in disk.after_cut()}.values()


def test_what_was_not_synced_may_be_absent_cut_short_zeroed_or_there(tmp_path):
    root = tmp_path / "state"
    trees = left(root, Operation("create", root / "f"), Operation("write", root / "f", b"abcd"))
    assert {tree.get("state/f") for tree in trees} == {None, b"", b"ab", b"\0\0\0\0", b"abcd"}


def test_a_synced_file_without_a_synced_folder_may_have_no_name(tmp_path):
    root = tmp_path / "state"
    made = [
        Operation("create", root / "f"),
        Operation("write", root / "f", b"ab"),
        Operation("sync", root / "f"),
    ]
    assert {tree.get("state/f") for tree in left(root, *made)} == {None, b"ab"}
    made.append(Operation("sync-folder", root))
    assert {tree.get("state/f") for tree in left(root, *made)} == {b"ab"}


def test_an_unsynced_renaming_may_be_undone_and_may_name_lost_data(tmp_path):
    root = tmp_path / "state"
    old = [Operation("create", root / "f"), Operation("write", root / "f", b"old"), Operation("sync", root / "f"),
           Operation("sync-folder", root)]  # fmt: skip
    new = [Operation("create", root / "n"), Operation("write", root / "n", b"newer")]
    trees = left(root, *old, *new, Operation("rename", root / "n", root / "f"))
    assert {tree.get("state/f") for tree in trees} == {b"old", b"", b"ne", b"\0" * 5, b"newer"}
    synced = left(
        root, *old, *new, Operation("sync", root / "n"), Operation("rename", root / "n", root / "f")
    )
    assert {tree.get("state/f") for tree in synced} == {b"old", b"newer"}


def test_a_removed_folder_may_be_there_with_any_part_of_its_content(tmp_path):
    root = tmp_path / "state"
    made = [Operation("mkdir", root / "d"), Operation("create", root / "d" / "f"), Operation("sync-folder", root / "d"),
            Operation("sync-folder", root)]  # fmt: skip
    gone = [Operation("unlink", root / "d" / "f"), Operation("rmdir", root / "d")]
    trees = left(root, *made, *gone)
    assert {tuple(sorted(tree)) for tree in trees} == {
        ("state",), ("state", "state/d"), ("state", "state/d", "state/d/f"),
    }  # fmt: skip


def test_a_file_cut_back_without_a_sync_may_have_its_old_length():
    file = File(b"abcdef", [b"abc", b"abcX"])
    assert set(file.after_cut()) >= {b"abcdef", b"abc", b"abcX"}


def test_a_link_is_replaced_or_not_and_never_missing(tmp_path):
    root = tmp_path / "state"
    made = [Operation("symlink", root / "l", "A"), Operation("sync-folder", root), Operation("symlink", root / "n", "B"),
            Operation("rename", root / "n", root / "l")]  # fmt: skip
    assert {tree["state/l"] for tree in left(root, *made)} == {"A", "B"}


# -- the judge turns where something is wrong -------------------------------------------------------------------------


def damaged_record(root):
    (root / "order.json").write_bytes(b"junk")


def older_record(root):
    # Both copies are gone: that is the oldest there is.
    for path in root.glob("boot.json*"):
        path.unlink()


def lost_counts(root):
    for path in (*root.glob("traffic.json*"), root / "drift.json"):
        path.unlink()


def slot_without_a_file(root):
    next((root / "deployments" / "digits").glob("*/model/*")).unlink()


def slot_without_mark(root):
    (root / "deployments" / "digits" / "current").resolve().joinpath("slot.json").unlink()


def current_elsewhere(root):
    link = root / "deployments" / "digits" / "current"
    other = {"A": "B", "B": "A"}[link.readlink().name]
    link.unlink()
    link.symlink_to(other)


DAMAGES = (
    damaged_record,
    older_record,
    lost_counts,
    slot_without_a_file,
    slot_without_mark,
    current_elsewhere,
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_state_that_no_cut_leaves_is_judged_wrong(damage, found, put, fleet):
    state = [state for state in found if state.promises.get(("committed",)) and ("serves",) in state.promises
             and isinstance(state.tree.get("state/deployments/digits/current"), str)
             and "state/deployments/digits/B/slot.json" in state.tree][-1]  # fmt: skip
    root = put(state)
    assert cut_judge.read(root, state.promises, fleet) == []
    damage(root)
    assert cut_judge.read(root, state.promises, fleet) != []
