"""Processes, forks and servers that do what they may do on a roof, under a real agent."""

import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from edgekit.wire.messages import OrderOptions


def conditions(fleet):
    return {condition.code: condition.detail for condition in fleet.now.conditions}


# -- workers -----------------------------------------------------------------------------------------------------


def test_a_stopped_worker_is_found_by_a_ping_and_replaced_and_its_callers_are_answered(
    fleet, settled, first, tools
):
    (old,) = settled.children()
    # Two connections that the worker has: one is idle, of the other's request it has read a part.
    idle, begun = tools.Client(settled.port), tools.Client(settled.port)
    image = {"input": tools.digit_images(1)[0].tolist()}
    assert [client.post("/predict", image).status for client in (idle, begun)] == [200, 200]
    begun.connection.putrequest("POST", "/predict")
    begun.connection.putheader("Content-Length", "1000")
    begun.connection.endheaders()
    begun.connection.send(b"{")
    time.sleep(0.5)
    os.kill(old, signal.SIGSTOP)
    tools.wait_until(
        lambda: tools.Client(settled.port).get("/v2/health/ready").status == 503, "it is ready no more"
    )
    begun.connection.send(b" " * 999)
    answers = []
    asking = threading.Thread(target=lambda: answers.append(idle.post("/predict", image).json["version"]))
    asking.start()
    callers = [
        threading.Thread(target=lambda: answers.append(tools.predict(settled)), daemon=True) for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    tools.wait_until(lambda: settled.children() not in ([], [old]), "a new worker", 40)
    for caller in (asking, *callers):
        caller.join(30)
    # The stopped worker had read nothing of them, so the new one answers them, on whatever connection they came.
    assert answers == ["1.0.0"] * 5
    assert begun.connection.getresponse().status == 503
    assert old not in settled.children()
    tools.wait_until(lambda: tools.predict(settled) == "1.0.0", "it serves")
    tools.wait_until(
        lambda: sum(window.worker_deaths for report in fleet.reports for window in report.deployments) == 1,
        "it is counted as a death",
    )
    assert "did not answer any more" in settled.log
    assert fleet.runs(first)


def test_a_worker_that_takes_more_memory_than_it_may_is_replaced(fleet, make_agent, tmp_path, tools):
    greedy = tools.build_greedy(tmp_path)
    agent = make_agent(fleet)
    fleet.order(fleet.publish(greedy))
    tools.wait_until(lambda: fleet.runs(greedy), "it is committed")
    (old,) = agent.children()

    def count(number):
        inputs = [{"name": "x", "shape": [1], "datatype": "FP32", "data": [number]}]
        answer = tools.Client(agent.port).post("/v2/models/digits/infer", {"inputs": inputs})
        return answer.json["outputs"][0]["data"][0] if answer.status == 200 else answer.status

    assert count(1000) == 1000
    # Beyond what the kernel gives it: an error (of the input, which is like none that was judged), and the worker goes on.
    assert count(1e9) == 400
    assert agent.children() == [old]
    # Less, but more than its contract says: the worker is ended, at the latest after it answered.
    # (A sum of ones in float32 stops at 2**24 for each lane that adds.)
    assert count(2e8) in (2**27, 2e8, 503)
    tools.wait_until(lambda: agent.children() not in ([], [old]), "a new worker", 40)
    tools.wait_until(lambda: count(1000) == 1000, "it serves")
    assert "it needed more than" in agent.log


def test_a_worker_runs_without_rights_and_is_the_first_to_go(settled):
    (worker,) = settled.children()
    status = dict(line.split(":\t") for line in Path(f"/proc/{worker}/status").read_text().splitlines())
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    limits = Path(f"/proc/{worker}/limits").read_text()
    assert re.search(r"Max data size +\d+ ", limits)
    assert re.search(r"Max core file size +0 ", limits)
    assert int(Path(f"/proc/{worker}/oom_score_adj").read_text()) > int(
        Path(f"/proc/{settled.process.pid}/oom_score_adj").read_text()
    )


def test_workers_and_a_self_test_end_with_an_agent_that_is_killed(fleet, settled, second, tools):
    """Even where they are stopped, and so read no channel."""
    module = "device_agent.update.selftest"
    fleet.order(fleet.publish(second))

    def testing():
        for pid in settled.children(module):
            # Beyond its imports: an engine is loaded.
            if "onnxruntime" in Path(f"/proc/{pid}/maps").read_text():
                os.kill(pid, signal.SIGSTOP)
                return pid
        return None

    test = None
    deadline = time.monotonic() + 30
    while test is None and time.monotonic() < deadline:
        test = testing()
    assert test is not None
    (worker,) = settled.children()
    os.kill(worker, signal.SIGSTOP)
    settled.process.kill()
    settled.process.wait(10)
    tools.wait_until(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in (test, worker)), "both are gone"
    )


FORKS = """
import asyncio, errno, os, pathlib
count = pathlib.Path(os.environ["FAILING_FORKS"])
make = asyncio.create_subprocess_exec
async def failing(*words, **options):
    left = int(count.read_text())
    if left:
        count.write_text(str(left - 1))
        raise OSError(errno.ENOMEM, "Cannot allocate memory")
    return await make(*words, **options)
asyncio.create_subprocess_exec = failing
"""


@pytest.fixture
def failing_forks(tmp_path):
    """A folder for PYTHONPATH under which as many forks fail as the file says."""
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text(FORKS)
    count = tmp_path / "forks"
    count.write_text("0")
    return count


@pytest.mark.proof
def test_failed_forks_heal_by_themselves(fleet, make_agent, first, second, failing_forks, tools, tmp_path):
    agent = make_agent(fleet, start=False)
    path = f"{tmp_path / 'patch'}:{os.environ.get('PYTHONPATH', '')}"
    agent.environment = {"PYTHONPATH": path, "FAILING_FORKS": str(failing_forks)}
    agent.start()
    fleet.order(fleet.publish(first))
    tools.wait_until(lambda: fleet.runs(first), "the first release is committed")
    # The worker's replacement cannot be made, twice.
    failing_forks.write_text("2")
    (old,) = agent.children()
    os.kill(old, signal.SIGKILL)
    tools.wait_until(lambda: failing_forks.read_text() == "0", "both forks failed")
    tools.wait_until(lambda: tools.predict(agent) == "1.0.0", "it serves again")
    assert "Cannot allocate memory" in agent.log
    # Nor can the self-test of an update, nor the new worker.
    failing_forks.write_text("3")
    fleet.order(fleet.publish(second))
    tools.wait_until(lambda: fleet.runs(second), "the second release is committed", 40)
    assert failing_forks.read_text() == "0"
    assert tools.predict(agent) == "2.0.0"


@pytest.mark.proof
def test_a_committed_release_that_keeps_dying_never_ends_the_update_that_would_mend_it(
    fleet, settled, first, second, tools
):
    withheld = fleet.publish(second)
    data = fleet.artifacts.pop(second.sha256)
    fleet.order(withheld)
    tools.wait_until(lambda: "update-waiting" in conditions(fleet), "the update waits for its bundle")
    for _ in range(6):
        (worker,) = tools.wait_until(settled.children, "a worker")
        os.kill(worker, signal.SIGKILL)
        tools.wait_until(lambda worker=worker: worker not in settled.children(), "it is gone")
    tools.wait_until(lambda: "worker-failing" in conditions(fleet), "it is reported")
    assert fleet.deployment().state.value == "fetch"
    fleet.artifacts[second.sha256] = data
    tools.wait_until(lambda: fleet.runs(second), "the update arrives, without an order", 60)
    tools.wait_until(lambda: conditions(fleet) == {}, "nothing is wrong any more")


@pytest.mark.proof
def test_clean_restarts_before_the_commit_are_held_against_nobody(fleet, settled, first, second, tools):
    fleet.order(fleet.publish(second), options=OrderOptions(probation_s=3600, probation_requests=1))
    tools.wait_until(lambda: fleet.deployment().state.value == "probation", "on probation")
    for _ in range(4):
        assert settled.stop() == 0
        fleet.reported.clear()
        settled.start()
        tools.wait_until(
            lambda: fleet.deployment() and fleet.deployment().state.value == "probation", "on probation again"
        )
        assert fleet.deployment().digest == second.sha256
    assert tools.predict(settled) == "2.0.0"
    tools.wait_until(lambda: fleet.runs(second), "committed")


# -- what comes from the artifact server -------------------------------------------------------------------------


PAGE = b"<html><body>Please log in to the guest network</body></html>"
# What the artifact server, or what stands before it, answers first; then the truth. {} is what the file has.
LIES = {
    "404": [(404, b"")],
    "401": [(401, b"")],
    "a proxy's page with 404": [(404, PAGE)],
    "a proxy's page with 200": [(200, PAGE), (200, PAGE)],
    "a flipped byte": [(200, "flipped")],
    "an empty answer": [(200, b"")],
    "more than the bundle": [(200, "longer")],
    "no metadata": [(404, b""), (500, b"")],
    "a page instead of metadata": [(404, b""), (200, PAGE)],
    "metadata with a byte too many": [(404, b""), (200, b"{}}")],
}


@pytest.mark.proof
def test_whatever_the_server_answers_first_the_update_arrives_without_another_order(
    fleet, settled, make_bundle, tools
):
    for number, (lie, answers) in enumerate(LIES.items(), 10):
        built = make_bundle(version=f"{number}.0.0", seed=number)
        ordered = fleet.publish(built)
        data = fleet.artifacts[built.sha256]
        bodies = {
            "flipped": data[:500] + bytes([data[500] ^ 1]) + data[501:],
            "longer": data + b"\0",
        }
        told = [(status, bodies.get(body, body)) for status, body in answers]
        # The first file of metadata that is asked for is the next root, which there is none of.
        fleet.metadata_lies, fleet.lies = (told, []) if "metadata" in lie else ([], told)
        fleet.order(ordered)
        tools.wait_until(lambda built=built: fleet.runs(built), f"{lie}: the release is committed", 40)
        assert fleet.lies == fleet.metadata_lies == []
        assert tools.predict(settled) == f"{number}.0.0"
    assert "rollback" not in fleet.states()
    assert "failed" not in fleet.states()


@pytest.mark.parametrize(
    "harm",
    [
        "a zeroed tail",
        *(
            pytest.param(harm, marks=pytest.mark.proof)
            for harm in ("zeroes all over", "longer than its name", "an unknown name")
        ),
    ],
)
@pytest.mark.proof
def test_a_download_that_a_power_cut_damaged_is_gone_on_from_or_begun_anew(
    harm, fleet, settled, second, tools
):
    fleet.cut_after = 2048
    ordered = fleet.publish(second)
    fleet.chunk_delay_s = 0.05
    fleet.order(ordered)
    folder = settled.state / "deployments" / "digits" / "fetch"
    part = tools.wait_until(lambda: next(folder.glob("*.2048.part"), None), "a part of it came")
    settled.kill_tree()
    part = next(folder.glob("*.part"))
    data = part.read_bytes()
    if harm == "a zeroed tail":
        part.write_bytes(data[:1024] + bytes(len(data) - 1024))
    elif harm == "zeroes all over":
        part.write_bytes(bytes(len(data)))
    elif harm == "longer than its name":
        part.write_bytes(data + bytes(1000))
    else:
        part.rename(part.with_name(f"{second.sha256}.part"))
    fleet.chunk_delay_s = 0
    settled.start()
    tools.wait_until(lambda: fleet.runs(second), "the release is committed, without an order", 40)
    assert "failed" not in fleet.states()


@pytest.mark.proof
def test_an_operator_can_order_a_refused_release_once_more(fleet, settled, first, make_bundle, tools):
    wrong = make_bundle(version="4.0.0", seed=1, scale=0.5)
    ordered = fleet.publish(wrong)
    fleet.order(ordered)
    tools.wait_until(lambda: fleet.deployment().state.value == "failed", "refused")
    tried = settled.log.count("step=selftest")
    fleet.order(ordered, options=OrderOptions(probation_s=0.5, retry=True))
    # What was fetched whole is not fetched again.
    tools.wait_until(lambda: settled.log.count("step=selftest") > tried, "it is tried again")
    tools.wait_until(lambda: fleet.deployment().state.value == "failed", "and refused again")
    assert fleet.deployment().digest == first.sha256
