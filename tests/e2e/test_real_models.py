"""Two real pretrained models through `edgekit build`, scored on real inputs against their float sources.

The weights come from installed packages (rapidocr, silero-vad), the inputs from `real_data/`: rendered text whose
turning we chose, and speech placed between pauses. Both generators are seeded; nothing is downloaded.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner

from edgekit import bundle, selftest
from edgekit.cli import cli
from edgekit.engines import LoadedBundle
from edgekit.errors import ContractMissedError
from edgekit.samples import Samples
from edgekit.selftest import answers, run_samples

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent / "real_data"
# What the sources reach on fresh data, less a few points: speech in segments of half a second is hard.
LEAST = {"orientation": 0.88, "speech": 0.78}
PROFILES = {"x86-64-v3", "raspberry-pi-5", "intel-core-ultra-npu"}
MODELS = {
    "orientation": ("rapidocr", "models/ch_ppocr_mobile_v2.0_cls_mobile.onnx"),
    "speech": ("silero_vad", "data/silero_vad_openvino_16k.onnx"),
}


def weights(name: str) -> Path:
    """The model's file, found without importing the package (silero-vad's would import torchaudio)."""
    package, inside = MODELS[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    return Path(spec.submodule_search_locations[0]) / inside


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", params=["orientation", pytest.param("speech", marks=pytest.mark.proof)])
def built(request, real_cache, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param)
    source = weights(request.param)
    words = [
        "build",
        source,
        "--project",
        HERE / f"{request.param}.toml",
        "--out",
        out,
        "--json",
        out / "r.json",
    ]
    result = CliRunner().invoke(
        cli, [str(word) for word in (*words, "--cache", real_cache)], catch_exceptions=False
    )
    document = json.loads((out / "r.json").read_text())
    return SimpleNamespace(
        name=request.param, source=source, out=out, document=document, output=result.output, cache=real_cache
    )


def test_x86_arm_and_npu_get_a_bundle_each(built):
    assert {entry["profile"] for entry in built.document["bundles"] if not entry["alternate"]} == PROFILES


def test_no_recipe_failed_on_any_engine(built):
    failed = {
        item["recipe"]: item["reason"]
        for item in built.document["candidates"]
        # A recipe that is for another kind of model says so and costs nothing.
        if item["status"] == "failed" and not item["reason"].startswith("not tried")
    }
    assert not failed


def test_float_candidates_compute_what_the_source_computes(built):
    for item in built.document["candidates"]:
        if item["recipe"].endswith(("/fp32", "/f32")):
            assert item["parity"] < 1e-3, item["recipe"]


def test_what_is_shipped_keeps_the_accuracy_on_inputs_that_the_build_never_saw(built, tmp_path):
    """Fresh data by another seed; the source runs in ONNX Runtime as the package would run it."""
    samples = fresh(built.name)
    first = bundle.read(Path(built.document["bundles"][0]["path"])).manifest
    session = ort.InferenceSession(str(built.source))
    names = [value.name for value in session.get_outputs()]

    def source(feed):
        return dict(zip(names, session.run(None, dict(feed)), strict=True))

    theirs, _ = run_samples(source, first.inputs, first.state, first.preprocess, samples)
    wanted = scored(theirs[names[0]], samples.labels)
    for entry in built.document["bundles"]:
        found = bundle.read(Path(entry["path"]))
        manifest = found.manifest
        if manifest.engine.options.get("device") == "NPU":
            continue  # there is none here
        folder = tmp_path / found.sha256
        found.extract(folder)
        loaded = LoadedBundle(manifest, folder)
        ours, _ = run_samples(loaded.run, manifest.inputs, manifest.state, manifest.preprocess, samples)
        shipped = scored(ours[names[0]], samples.labels)
        assert shipped > wanted - 0.03, entry["recipe"]
        assert shipped > LEAST[built.name]
        assert selftest.check(manifest, loaded, folder).passed
        loaded.close()


@pytest.mark.proof
def test_a_build_that_cannot_keep_the_accuracy_exits_3_with_the_table(built, tmp_path):
    """An int8-only target and a limit that quantization of these models is known to miss or not to show."""
    words = [
        "build", built.source, "--project", HERE / f"{built.name}.toml", "--target", "nxp-imx93-ethos-u65",
        "--recipe", "litert/static-int8", "--max-accuracy-drop", "0.0001", "--out", tmp_path / "dist", "--cache", built.cache,
    ]  # fmt: skip
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert isinstance(result.exception, ContractMissedError)
    assert result.exception.exit_code == 3
    assert "litert/static-int8" in result.output
    assert not list((tmp_path / "dist").glob("*.edgekit"))


def fresh(name: str) -> Samples:
    sys.path.insert(0, str(HERE))
    try:
        if name == "orientation":
            import orientation

            items = list(orientation.lines(120, seed=77))
            return Samples(
                {"x": np.stack([item[0]["x"] for item in items])}, np.array([item[1] for item in items])
            )
        import speech

        frames = list(speech.frames(range(2000, 2040)))
        return Samples(
            {"input": np.stack([frame[0]["input"] for frame in frames])},
            np.array([frame[1] for frame in frames]),
            np.array([frame[2] for frame in frames], np.int64),
        )
    finally:
        sys.path.remove(str(HERE))


def scored(output: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(answers(output).reshape(len(labels)) == labels))
