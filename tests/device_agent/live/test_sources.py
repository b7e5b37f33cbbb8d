"""Sources and sinks of a running agent: folders, brokers, cameras, a microphone; and what a SIGKILL in the middle costs."""

import json

import numpy as np
import pytest


@pytest.fixture
def make_fed(fleet, make_agent, make_bundle, tools):
    """An agent with an agent.toml that serves the digits."""

    def make(config, built=None):
        agent = make_agent(fleet, start=False)
        agent.state.mkdir(mode=0o700)
        (agent.state / "agent.toml").write_text(config)
        agent.start()
        built = built or make_bundle(sturdy=True)
        fleet.order(fleet.publish(built))
        tools.wait_until(lambda: fleet.runs(built), "the release is committed")
        return agent

    return make


def answers(path):
    """Whole lines of a file sink."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def drop(folder, name, value=1):
    """A file for the digits, put in place by a rename."""
    hidden = folder / f".{name}"
    hidden.write_text(json.dumps({"input": np.full((8, 8), value).tolist()}))
    hidden.rename(folder / name)


@pytest.fixture
def inbox(tmp_path):
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


@pytest.fixture
def fed(make_fed, inbox, tmp_path):
    """An agent that reads a folder into a file."""
    return make_fed(f"""
[[source]]
kind = "folder"
name = "inbox"
path = "{inbox}"
settle_s = 0.1
poll_s = 0.1

[[sink]]
kind = "file"
name = "lines"
path = "{tmp_path}/out/answers.jsonl"
""")


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "answers.jsonl"


def test_files_of_a_folder_are_answered_and_moved_and_refused_ones_say_why(out, fed, inbox, tools):
    for number in range(3):
        drop(inbox, f"{number}.json", number)
    (inbox / "notes.txt").write_text("no input")
    (inbox / "broken.json").write_text("{")
    tools.wait_until(lambda: len(answers(out)) == 5, "every file has its answer")
    tools.wait_until(lambda: not [one for one in inbox.iterdir() if one.is_file()], "and is moved")
    assert sorted(one.name for one in (inbox / "done").iterdir()) == ["0.json", "1.json", "2.json"]
    assert sorted(one.name for one in (inbox / "failed").iterdir()) == [
        "broken.json", "broken.json.reason.json", "notes.txt", "notes.txt.reason.json",
    ]  # fmt: skip
    assert (
        "its name does not say" in json.loads((inbox / "failed/notes.txt.reason.json").read_text())["reason"]
    )
    by_file = {one["input"]["file"]: one for one in answers(out)}
    assert by_file["1.json"]["answer"]["model"] == "digits"
    assert by_file["broken.json"]["error"] == "input"
    assert len({one["id"] for one in answers(out)}) == 5
    shown = tools.Client(fed.port)
    assert shown.get("/metrics").status == 200
