"""The README's project file and every command of it, run as printed in a copy of the checkout.

Always true
 1. Every command line of the page meets exactly one entry of `BLOCKS` or `SENTENCES`; a new one without an entry fails.
 2. A line of a block runs as it stands but for what its entry says it changes: ports (others may be in use), the number
    of a rollout that only the demo gets to, the rows that the page leaves out of a request, and, for time, the recipes of
    a build: the demo builds the example with all of them.
 3. A command in a sentence stands for its kind: its entry runs that kind on what the blocks made.
"""

import functools
import http.client
import json
import re
import shlex
import shutil
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import readme
from desk import Desk
from ports import free_port
from readme import Command

pytestmark = pytest.mark.slow
PAGE = readme.text()
COMMANDS = readme.commands(PAGE)
# What the tests put into the folder themselves: inputs that a reader brings along.
BROUGHT = ("model.onnx", "calib.npz", "eval.npz", "pictures/")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    made = Desk(tmp_path_factory.mktemp("newcomer") / "edgekit")
    try:
        yield made
    finally:
        made.stop_all()


# -- blocks: the line as printed -----------------------------------------------------------------------------------------


def exempt(desk: Desk, line: str) -> None:
    """CI runs `make test`, which runs this, and a test of its own runs what `make demo` runs."""
    assert re.search(rf"^{line.split()[1]}:", (desk.folder / "Makefile").read_text(), re.MULTILINE)


ONE_RECIPE = " --recipe onnxruntime/fp32"


def build_the_example(desk: Desk, line: str) -> None:
    desk.train()
    said = desk.run(line + ONE_RECIPE)
    assert desk.bundle().name in said
    assert (desk.folder / desk.bundle()).is_file()
    assert (desk.folder / "dist/report.html").is_file()


def build_by_flags(desk: Desk, line: str) -> None:
    desk.vision()
    desk.run(line + ONE_RECIPE)
    assert (desk.folder / "dist/vision-1-raspberry-pi-5.edgekit").is_file()
    made = json.loads((desk.folder / "result.json").read_text())["bundles"]
    assert {bundle["profile"] for bundle in made} == {"raspberry-pi-5"}


def verify(desk: Desk, line: str) -> None:
    assert "passed" in desk.run(line)


def fleet_up(desk: Desk, line: str) -> None:
    line += f" --http 127.0.0.1:{free_port()} --mqtt 127.0.0.1:{free_port()}"
    client = desk.folder / "fleet-state/client.toml"
    desk.start(
        "fleet",
        line,
        lambda: (
            client.is_file()
            and '"' in desk.run("edgekit fleet --fleet fleet-state status --json", codes=(0, 5))
        ),
    )


def export(desk: Desk, line: str) -> None:
    name, _, value = line.removeprefix("export ").partition("=")
    desk.environment[name] = value


def enroll(desk: Desk, line: str) -> None:
    desk.run(line)
    assert (desk.folder / shlex.split(line)[-1]).is_file()


def publish(desk: Desk, line: str) -> None:
    desk.run(line)
    assert "1.0.0" in desk.run("edgekit fleet releases")


def start_rollout(desk: Desk, line: str) -> None:
    assert "r1" in desk.run(line)


def watch_rollout(desk: Desk, line: str) -> None:
    """It ends with the rollout, which soaks for half an hour: a look at what it shows (5: it has not completed)."""
    assert "r1" in desk.run(f"{line} --timeout 2", codes=(5,))


def show_rollout(desk: Desk, line: str) -> None:
    """A fleet gets to its third rollout in the demo; this one's is the first."""
    assert "digits@1.0.0" in desk.run(re.sub(r"\br\d+$", "r1", line))


def run_agent(desk: Desk, line: str) -> None:
    """The first start, on a port of this run's own, until the fleet sees it."""

    def is_online() -> bool:
        return [device["online"] for device in json.loads(desk.run("edgekit fleet devices --json"))] == [True]

    desk.start("agent", line.replace("127.0.0.1:8500", desk.agent), is_online)


def run_agent_again(desk: Desk, line: str) -> None:
    """Once the rollout has brought a model, a new start serves it."""
    desk.wait(lambda: serves(desk), "the agent serves what was rolled out", timeout_s=90)
    assert desk.stop("agent") == 0
    desk.start("agent", f"{line} --http {desk.agent}", lambda: serves(desk))


def serves(desk: Desk) -> bool:
    return predict(desk, [[0] * 8] * 8)[0] == 200


def predict(desk: Desk, image: Any) -> tuple[int, bytes]:
    host, _, port = desk.agent.partition(":")
    asked = http.client.HTTPConnection(host, int(port), timeout=20)
    try:
        asked.request("POST", "/predict", json.dumps({"input": image}), {"Content-Type": "application/json"})
        answer = asked.getresponse()
        return answer.status, answer.read()
    except OSError:
        return 0, b""
    finally:
        asked.close()


def curl(desk: Desk, line: str) -> None:
    """With the picture whose first rows the page shows, by curl where there is one; the answer is as the page shows it."""
    (rows,) = re.findall(r'\{"input": \[(.*), …\]\}', line)
    first = json.loads(f"[{rows}]")
    (shown,) = re.findall(r"^\$ curl.*\n((?:[ {].*\n)+)", PAGE, re.MULTILINE)
    expected = json.loads(shown)
    image = next(
        image.astype(int).tolist()
        for image, label in desk.digits
        if image[: len(first)].tolist() == first and str(label) == expected["label"]
    )
    if shutil.which("curl"):
        typed = line.replace("127.0.0.1:8500", desk.agent).replace(f"[{rows}, …]", json.dumps(image))
        answer = json.loads(desk.run(typed))
    else:
        status, body = predict(desk, image)
        assert status == 200, body
        answer = json.loads(body)
    assert answer.keys() == expected.keys()
    (ours,), (theirs,) = answer["outputs"].values(), expected["outputs"].values()
    assert ours[0].keys() == theirs[0].keys()
    for key in ("deployment", "model", "version", "label"):
        assert answer[key] == expected[key]


# The beginning of a block's line → what runs it. The order of the page is the order in which they run.
BLOCKS: Mapping[str, Callable[[Desk, str], None]] = {
    r"make (demo|test)$": exempt,
    r"edgekit build --project examples/digits --target \S+$": build_the_example,
    r"edgekit build model\.onnx ": build_by_flags,
    r"edgekit verify ": verify,
    r"edgekit fleet up ": fleet_up,
    r"export \w+=": export,
    r"edgekit fleet enroll ": enroll,
    r"edgekit fleet publish ": publish,
    r"edgekit fleet rollout start ": start_rollout,
    r"edgekit fleet rollout watch r1$": watch_rollout,
    r"edgekit fleet rollout status r\d+$": show_rollout,
    r"edgekit agent run --enrolment ": run_agent,
    r"edgekit agent run --state state$": run_agent_again,
    r"curl -s 127\.0\.0\.1:8500/predict ": curl,
}


# -- sentences: what they name, on what the blocks made --------------------------------------------------------------------


def lines(*texts: str) -> Callable[[Desk], None]:
    """Run each; `BUNDLE` is what the first block built."""

    def run(desk: Desk) -> None:
        for text in texts:
            desk.run(text.replace("BUNDLE", str(desk.bundle())))

    return run


def build_apart(desk: Desk, *more: str) -> None:
    """The example with more flags, into a folder of its own."""
    desk.train()
    desk.run(
        f"edgekit build --project examples/digits --target x86-64-v3 --out {desk.other} {' '.join(more)}"
    )


@functools.cache
def build_locked(desk: Desk) -> None:
    """`--lock`, `--locked`, `--recipe`. A reader commits the lock; here it goes, so that it holds for no other command."""
    flags = ("--version", "1.0.1", ONE_RECIPE)
    build_apart(desk, "--lock", *flags)
    build_apart(desk, "--locked", *flags)
    (desk.folder / "examples/digits/edgekit.lock").unlink()


@functools.cache
def explain_a_picture(desk: Desk) -> None:
    folder = desk.folder / "pictures"
    folder.mkdir(exist_ok=True)
    image, _ = desk.digits[0]
    (folder / "c.json").write_text(json.dumps({"x": image.tolist()}))
    assert "rests on" in desk.run(f"edgekit explain {desk.bundle()} pictures/c.json --out pictures/why.png")
    assert (folder / "why.png").is_file()


def run_on_pictures(desk: Desk) -> None:
    from PIL import Image

    folder = desk.folder / "pictures"
    folder.mkdir(exist_ok=True)
    shade = Image.new("RGB", (224, 224), (200, 40, 90))
    shade.save(folder / "a.png")
    image, _ = desk.digits[0]
    (folder / "b.json").write_text(json.dumps({"x": image.tolist()}))
    said = desk.run(f"edgekit run {desk.bundle()} pictures/b.json")
    assert json.loads(said.splitlines()[-1])["outputs"]
    # That bundle pre-processes nothing, so it takes no pictures, and says what it takes.
    assert "takes no images" in desk.run(
        "edgekit run dist/vision-1-raspberry-pi-5.edgekit pictures/a.png", codes=(2,)
    )


def compare(desk: Desk) -> None:
    build_locked(desk)
    assert "1.0.1" in desk.run(f"edgekit diff {desk.bundle()} {desk.other / desk.bundle('1.0.1').name}")


def operate(desk: Desk) -> None:
    """Beside it the sentence names `device explain` and `freeze`."""
    assert "board-1" in desk.run("edgekit fleet devices")
    assert "digits" in desk.run("edgekit fleet device explain board-1")
    desk.run("edgekit fleet freeze && edgekit fleet unfreeze")


def filtered(desk: Desk) -> None:
    assert json.loads(desk.run("edgekit fleet devices --where 'site=lab and state=failed' --json")) == []
    found = json.loads(desk.run("edgekit fleet devices --where 'site=lab' --json"))
    assert [device["device"] for device in found] == ["board-1"]


def back_up(desk: Desk) -> None:
    desk.run("edgekit fleet backup ../fleet.zip --state fleet-state")
    assert (desk.folder.parent / "fleet.zip").is_file()


def simulate(desk: Desk) -> None:
    """A few, on the fleet that runs, for a moment."""
    said = desk.run("edgekit fleet simulate --devices 3 --window 1s --duration 3s --json")
    told = json.loads(said.splitlines()[-1])
    assert told["reports_sent"] == told["reports_acknowledged"] > 0


def make_a_home(desk: Desk) -> None:
    """Outside the checkout: inside a repository it is refused."""
    places = "--public-url https://fleet.example:8443 --mqtt-public mqtts://fleet.example:8883"
    passphrase = "EDGEKIT_CA_PASSPHRASE='a long passphrase'"
    assert "repository" in desk.run(f"{passphrase} edgekit fleet init network-fleet {places}", codes=(2,))
    desk.run(f"{passphrase} edgekit fleet init ../network-fleet {places}")
    assert (desk.folder.parent / "network-fleet/fleet.toml").is_file()


def no_emulator(desk: Desk) -> None:
    """It fetches an emulator, which no test does: `tests/converters/test_emulation.py` runs one that is set up."""
    assert "emulate" in desk.run("edgekit verify --help")
    assert "setup" in desk.run("edgekit emulator --help")


# Minutes on a slow machine, of what other tests walk: with make proofs.
LONG = (
    "edgekit build --search 40",
    "edgekit build --lock",
    "edgekit build --locked",
    "edgekit build --recipe 'litert/*'",
    "edgekit diff A B",
)
# A command that stands in a sentence, word for word → what runs its kind.
SENTENCES: Mapping[str, Callable[[Desk], None]] = {
    "edgekit build": lines("edgekit build --help"),
    "edgekit agent": lines("edgekit agent --help"),
    "edgekit fleet": lines("edgekit fleet --help"),
    "make demo": lambda desk: exempt(desk, "make demo"),
    "python examples/digits/digits.py": lambda desk: desk.train(),
    "edgekit report": lines("edgekit report dist/digits-*.evidence.json", "edgekit report result.json"),
    "edgekit build --lock": build_locked,
    "edgekit build --locked": build_locked,
    "edgekit build --search 40": lambda desk: build_apart(
        desk, "--search 1 --recipe onnxruntime/static-int8"
    ),
    "edgekit build --recipe 'litert/*'": build_locked,
    "edgekit build --on-device": lines("edgekit build --help"),
    "edgekit fleet tune": lines("edgekit fleet tune --help"),
    "edgekit verify": lines("edgekit verify BUNDLE"),
    "edgekit verify --emulate BUNDLE": no_emulator,
    "edgekit emulator setup": no_emulator,
    "edgekit cache status|clear": lines("edgekit cache status", "edgekit cache clear --help"),
    "edgekit inspect": lines("edgekit inspect BUNDLE", "edgekit inspect --json BUNDLE"),
    "edgekit inspect BUNDLE": lines("edgekit inspect BUNDLE"),
    "edgekit run": run_on_pictures,
    "edgekit run BUNDLE INPUT…": run_on_pictures,
    "edgekit run BUNDLE cat.png": run_on_pictures,
    "edgekit explain BUNDLE INPUT": explain_a_picture,
    "edgekit diff A B": compare,
    "edgekit profiles list|show|detect": lines(
        "edgekit profiles list", "edgekit profiles show raspberry-pi-5", "edgekit profiles detect"
    ),
    "edgekit profiles detect": lines("edgekit profiles detect"),
    "edgekit fleet devices": operate,
    "edgekit fleet devices --where 'site=lab and state=failed'": filtered,
    "edgekit fleet backup": back_up,
    "edgekit fleet shadow start": lines("edgekit fleet shadow start --help"),
    "edgekit fleet experiment start": lines("edgekit fleet experiment start --help"),
    "edgekit fleet simulate --devices 1000": simulate,
    "edgekit fleet init DIR --public-url https://… --mqtt-public mqtts://…": make_a_home,
    "edgekit agent status": lines("edgekit agent status --state state"),
    "edgekit agent doctor": lines("edgekit agent doctor --state state"),
    "edgekit agent install": lines("edgekit agent install --help"),
    "edgekit agent install --dry-run": lines("edgekit agent install --dry-run"),
}


def entry(command: Command) -> Callable[[Desk], None] | None:
    """What runs it; None if nothing does. Raises: AssertionError if two entries claim it."""
    if not command.is_block:
        return SENTENCES.get(command.text)
    found = [run for pattern, run in BLOCKS.items() if re.match(pattern, command.text)]
    assert len(found) < 2, f"two entries run {command.text!r}"
    return (lambda desk: found[0](desk, command.text)) if found else None


@pytest.mark.parametrize(
    "command",
    [pytest.param(each, marks=pytest.mark.proof) if each.text in LONG else each for each in COMMANDS],
    ids=lambda command: str(command.text)[:70],
)
def test_a_command_of_the_readme_does_what_it_says(command: Command, desk: Desk) -> None:
    run = entry(command)
    assert run is not None, (
        f"README.md shows {command.text!r}, which no test runs: add an entry to "
        f"{'BLOCKS' if command.is_block else 'SENTENCES'} in {Path(__file__).name}"
    )
    run(desk)


# -- the project file ------------------------------------------------------------------------------------------------------


def is_part(shown: Any, whole: Any) -> bool:
    """Whether all that is shown stands in `whole` with the same value; of a list of steps, in the same order."""
    if isinstance(shown, dict):
        return isinstance(whole, dict) and all(
            key in whole and is_part(value, whole[key]) for key, value in shown.items()
        )
    if isinstance(shown, list) and shown and isinstance(shown[0], dict):
        left = iter(whole)
        return all(any(is_part(step, other) for other in left) for step in shown)
    return bool(shown == whole)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ({"a": {"b": 1}}, True),
        ({"a": {"b": 2}}, False),
        ({"c": {}}, False),
        ({"s": [{"op": "y"}]}, True),
        ({"s": [{"op": "y"}, {"op": "x"}]}, False),
    ],
)
def test_the_comparison_of_project_files_sees_what_differs(shown: dict[str, Any], expected: bool) -> None:
    assert is_part(shown, {"a": {"b": 1}, "s": [{"op": "x"}, {"op": "y", "k": 1}]}) == expected


def test_the_project_file_that_is_shown_is_the_examples(desk: Desk) -> None:
    (shown,) = readme.projects(PAGE)
    shipped = (desk.folder / "examples/digits/edgekit.toml").read_text()
    assert is_part(tomllib.loads(shown), tomllib.loads(shipped))


@pytest.mark.proof
def test_the_project_file_that_is_shown_builds(desk: Desk) -> None:
    (shown,) = readme.projects(PAGE)
    desk.train()
    project = desk.folder.parent / "as-printed"
    shutil.copytree(desk.folder / "examples/digits", project)
    (project / "edgekit.toml").write_text(shown)
    desk.run(f"edgekit build --project {project} --out {project}/dist --recipe onnxruntime/fp32")
    targets = tomllib.loads(shown)["targets"]
    assert {path.name for path in (project / "dist").glob("*.edgekit")} == {
        f"digits-1.0.0-{target}.edgekit" for target in targets
    }


# -- afterwards --------------------------------------------------------------------------------------------------------------


def test_no_key_token_or_state_that_the_commands_leave_shows_up_in_git(desk: Desk) -> None:
    if not (desk.folder / ".git").is_dir():
        pytest.skip("git is not installed")
    made = {path.name for path in desk.folder.iterdir()}
    assert {"dist", "fleet-state", "state", "board-1.json", "result.json", "report.html"} <= made
    left = [line[3:] for line in desk.run("git status --porcelain").splitlines()]
    assert [name for name in left if name not in BROUGHT] == []


def test_what_runs_ends_by_ctrl_c(desk: Desk) -> None:
    began = time.monotonic()
    assert {name: desk.stop(name) for name in ("agent", "fleet")} == {"agent": 0, "fleet": 0}
    assert time.monotonic() - began < 40, "it had to be killed"
