"""The commands on a real bundle: what a person sees, what a machine reads, and how each mistake ends."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from edgekit import bundle as bundles
from edgekit import evidence, local
from edgekit.cli.bundles import diff, inspect, run, verify
from edgekit.errors import BundleError, DataError, SelfTestFailedError
from edgekit.evidence import BuildEvidence, CandidateEvidence, Figure, OutputEvidence, Where
from edgekit.manifest import Step, TensorSpec
from edgekit.samples import Samples, dump_npz


def call(command, *args: object) -> Result:
    return CliRunner().invoke(command, [str(arg) for arg in args])


def lines(result: Result) -> list[dict]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def good(maker) -> Path:
    return maker.write()


def test_inspect_shows_the_manifest_and_files(good: Path) -> None:
    shown = call(inspect, good).output
    assert "tints-1.0.0-x86-64-v3" in shown
    assert "image: float32 1x3x8x8" in shown
    assert "mean=[120.0, 110.0, 100.0]" in shown
    assert "model/model.onnx" in shown
    assert "none beside the bundle" in shown


def test_inspect_shows_the_evidence_beside_the_bundle_with_how_it_was_got(good: Path) -> None:
    measured = Figure(0.97, "measured", Where("Test CPU"))
    guess = Figure(1.0, "estimated", Where("Pi"), high=3.0)
    build = BuildEvidence(
        "tints", "1.0.0", "x86-64-v3", "onnxruntime/fp32", "top1", measured, measured, guess, guess, {}, ()
    )
    digest = bundles.sha256_file(good)
    evidence.beside(good).write_bytes(evidence.encode(evidence.statement(good.name, digest, build)))
    shown = call(inspect, good).output
    assert "0.97, measured on Test CPU" in shown
    assert "1 to 3, estimated on Pi" in shown
    read = json.loads(call(inspect, good, "--json").output)
    assert read["sha256"] == digest
    assert read["evidence"]["predicate"]["accuracy"]["value"] == 0.97
    evidence.beside(good).write_bytes(evidence.encode(evidence.statement(good.name, "0" * 64, build)))
    assert isinstance(call(inspect, good).exception, BundleError)


def test_verify_passes_a_good_bundle(good: Path) -> None:
    result = call(verify, good)
    assert result.exit_code == 0
    assert "passed" in result.output
    assert json.loads(call(verify, good, "--json").output)["passed"] is True


def test_verify_of_a_wrong_bundle_ends_with_code_3_and_the_reason(maker) -> None:
    bad = maker.write(
        steps={"image": (Step("cast", {"dtype": "float32"}), Step("transpose", {"axes": [2, 0, 1]}))}
    )
    result = call(verify, bad, "--json")
    assert json.loads(result.stdout)["passed"] is False
    assert isinstance(result.exception, SelfTestFailedError)
    program = [sys.executable, "-m", "edgekit", "verify", str(bad)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "must not run on this machine: output 'logits' is off by" in done.stderr
    assert "Traceback" not in done.stderr


def picture(path: Path) -> Path:
    pixels = np.random.default_rng(3).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_every_kind_of_file_with_the_same_pixels_gives_the_same_answer(good: Path, tmp_path: Path) -> None:
    png = picture(tmp_path / "a.png")
    pixels = np.asarray(Image.open(png))
    np.save(tmp_path / "a.npy", pixels)
    (tmp_path / "a.npz").write_bytes(dump_npz(Samples({"image": pixels[None]})))
    (tmp_path / "a.json").write_text(json.dumps({"image": pixels.tolist()}))
    (tmp_path / "b.json").write_text(json.dumps(pixels.tolist()))
    files = [png, *(tmp_path / name for name in ("a.npy", "a.npz", "a.json", "b.json"))]
    answered = lines(call(run, good, *files))
    assert [line["input"] for line in answered] == [str(path) for path in files]
    assert len({json.dumps(line["outputs"]) for line in answered}) == 1
    assert [entry["index"] for entry in answered[0]["outputs"]["logits"]] != []
    assert answered[0]["latency_ms"] > 0


def test_a_folder_is_run_in_order_and_a_bad_file_does_not_stop_the_others(good: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    (folder / "sub").mkdir(parents=True)
    picture(folder / "2.png")
    picture(folder / "sub" / "3.png")
    (folder / "1.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not an input")
    result = call(run, good, folder)
    answered = lines(result)
    assert [Path(line["input"]).name for line in answered] == ["1.png", "2.png", "3.png"]
    assert "not a readable image" in answered[0]["error"]
    assert "outputs" in answered[1]
    assert isinstance(result.exception, DataError)
    assert "1 of 3 input files" in str(result.exception)


def test_an_archive_gives_one_line_a_sample(good: Path, maker, tmp_path: Path) -> None:
    (tmp_path / "many.npz").write_bytes(dump_npz(maker.golden.take(slice(0, 3))))
    assert [line["sample"] for line in lines(call(run, good, tmp_path / "many.npz"))] == [0, 1, 2]


def test_answers_go_to_a_file_whole(good: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    result = call(run, good, picture(tmp_path / "a.png"), "--out", out)
    assert result.exit_code == 0
    assert result.stdout == ""
    assert json.loads(out.read_text())["outputs"]
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.ogg", b"RIFF", "is not read; use .npz, .npy, .json"),
        ("a.json", b"{", "not JSON"),
        ("a.json", b'{"picture": []}', "'picture' is no input; the model takes image"),
        ("a.json", b'{"image": [[1], [2, 3]]}', "no rectangular list of numbers"),
        ("a.json", b'{"image": "text"}', "not made of numbers"),
        ("a.json", b"{}", "holds no input"),
        ("a.npy", b"zzz", "not a plain .npy array"),
        ("a.npz", b"zzz", "not an .npz"),
        ("a.png", b"zzz", "not a readable image"),
    ],
)
def test_a_bad_input_file_is_named_with_its_mistake(
    name: str, content: bytes, says: str, good: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    answered = lines(call(run, good, tmp_path / name))
    assert says in answered[0]["error"]


def test_missing_and_empty_inputs_are_refused_before_anything_runs(good: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no such file or folder" in str(call(run, good, tmp_path / "absent.png").exception)
    assert "no input files in this folder" in str(call(run, good, tmp_path / "empty").exception)


def test_images_need_a_bundle_that_pre_processes_them(maker, tmp_path: Path) -> None:
    plain = maker.manifest({}, preprocess={})
    from edgekit.inputs import read_input

    with pytest.raises(DataError, match="has no pre-processing for 'image', so it takes no images"):
        read_input(picture(tmp_path / "a.png"), plain)


def test_a_json_list_for_two_inputs_must_name_them(maker, tmp_path: Path) -> None:
    from edgekit.inputs import read_input

    two = maker.manifest(
        {}, inputs=(TensorSpec("a", "uint8", (1, 2)), TensorSpec("b", "float32", (1, 2))), preprocess={}
    )
    path = tmp_path / "a.json"
    path.write_text("[1, 2]")
    with pytest.raises(DataError, match=r"takes 2 inputs \(a, b\)"):
        read_input(path, two)
    path.write_text('{"a": [[1, 300]], "b": [[1, 2]]}')
    with pytest.raises(DataError, match="some of the data does not fit uint8"):
        read_input(path, two)
    path.write_text('{"a": [[1, 200]], "b": [[1, 2]]}')
    assert read_input(path, two).inputs["b"].dtype == np.float32


def test_diff_tells_what_changed(good: Path, maker, tiny_classifier) -> None:
    def shifted(weights: dict) -> None:
        weights["bias"] = weights["bias"] + np.float32(1)

    other = maker.write("other.edgekit", true_model=tiny_classifier(shifted), version="1.1.0")
    found = json.loads(call(diff, good, other, "--json").output)
    assert {"what": "version", "before": "1.0.0", "after": "1.1.0"} in found["fields"]
    assert "model/model.onnx" in {change["what"] for change in found["files"]}
    assert found["tensors"] == []
    assert "1.1.0" in call(diff, good, other).output
    assert "hold the same" in call(diff, good, good).output


def test_diff_tells_of_tensors_that_come_go_and_change(maker) -> None:
    from edgekit.compare import difference

    before = maker.manifest({})
    after = msgspec.structs.replace(
        before,
        inputs=(TensorSpec("image", "uint8", (1, 3, 8, 8)),),
        outputs=(TensorSpec("score", "float32", (1, 1)),),
    )
    told = {(change.what, change.before, change.after) for change in difference(before, after).tensors}
    assert told == {
        ("input image", "float32 1x3x8x8", "uint8 1x3x8x8"),
        ("output logits", "float32 1x3", None),
        ("output score", None, "float32 1x1"),
    }


def test_diff_words_changed_steps(maker) -> None:
    from edgekit.compare import difference

    before = maker.manifest({})
    after = msgspec.structs.replace(before, preprocess={"image": (Step("cast", {"dtype": "float32"}),)})
    (change,) = difference(before, after).fields
    assert change.what == "preprocess.image"
    assert change.after == ["cast(dtype=float32)"]


@pytest.mark.parametrize("command", [inspect, verify, diff, run])
def test_a_damaged_bundle_is_refused_by_every_command(command, good: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.edgekit"
    damaged.write_bytes(good.read_bytes()[:-100])
    rest = {diff: [good], run: [picture(tmp_path / "a.png")]}.get(command, [])
    assert isinstance(call(command, damaged, *rest).exception, BundleError)


def with_evidence(path: Path, recipe: str, status: str, ms: float) -> Path:
    where = Where("Test CPU")
    own = CandidateEvidence(
        recipe, status, "why", outputs=(OutputEvidence("boxes", "regression", "snr", 21.5, None, 21.5),)
    )
    build = BuildEvidence(
        "tints", "1.0.0", "x86-64-v3", recipe, "top1", Figure(0.98, "measured", where), Figure(0.97, "measured", where),
        Figure(ms, "measured", where), Figure(2 * ms, "measured", where), {"latency_p95_ms": "met"}, (own,),
    )  # fmt: skip
    digest = bundles.sha256_file(path)
    evidence.beside(path).write_bytes(evidence.encode(evidence.statement(path.name, digest, build)))
    return path


def test_diff_of_a_pick_and_its_alternate_shows_their_figures_side_by_side(maker, tmp_path: Path) -> None:
    pick = with_evidence(maker.write("m.edgekit"), "litert/static-int8", "picked", 0.5)
    folder = tmp_path / "alternates" / "litert-fp16"
    folder.mkdir(parents=True)
    other = Path(shutil.copy(pick, folder / "m.edgekit"))
    with_evidence(other, "litert/fp16", "alternate", 0.75)
    shown = call(diff, pick, other).output
    assert "the two bundles hold the same" in shown
    assert str(other) in shown
    row = next(line for line in shown.splitlines() if "latency p50" in line)
    assert "0.5, measured on Test CPU" in row
    assert "0.75, measured on Test CPU" in row
    assert "21.5" in next(line for line in shown.splitlines() if "boxes, SNR" in line)
    figures = json.loads(call(diff, pick, other, "--json").output)["figures"]
    assert {"what": "status", "before": "picked", "after": "alternate"} in figures
    assert next(row for row in figures if row["what"] == "latency p95 (ms)")["after"]["value"] == 1.5


def test_diff_without_evidence_has_no_figures(good: Path) -> None:
    assert json.loads(call(diff, good, good, "--json").output)["figures"] == []
    assert "Figures" not in call(diff, good, good).output


@pytest.mark.parametrize(
    ("arch", "isa", "bundle_for", "says"),
    [
        ("x86_64", ("avx2",), "x86-64-v3", ""),
        ("x86_64", ("avx2",), "raspberry-pi-5", "built for raspberry-pi-5 (aarch64, neon, dotprod, fp16); this is x86_64: "),
        ("x86_64", ("avx2",), "x86-64-v4-vnni", "this is x86_64 without "),
        ("x86_64", ("avx2",), "somebodys-board", "a profile that is not known here"),
        ("aarch64", ("neon", "dotprod", "fp16"), "raspberry-pi-5", ""),
        ("aarch64", ("neon", "dotprod", "fp16"), "arm-ethos-u55-128", "its times say nothing about the board"),
    ],
)  # fmt: skip
def test_a_bundle_for_another_kind_of_machine_is_told_plainly(
    arch: str, isa: tuple[str, ...], bundle_for: str, says: str, maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: arch)
    monkeypatch.setattr("edgekit.detect.isa", lambda: isa)
    manifest = msgspec.structs.replace(maker.manifest({}), profile=bundle_for)
    told = local.foreign(manifest)
    assert says in told
    assert bool(told) == bool(says)


def test_verify_says_so_beside_the_result(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "machine" not in call(verify, good).output
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    shown = call(verify, good)
    assert shown.exit_code == 0
    assert "built for x86-64-v3 (x86_64, avx2" in shown.output
    assert "its times say nothing about the board" in shown.output
    assert json.loads(call(verify, good, "--json").output)["passed"] is True
