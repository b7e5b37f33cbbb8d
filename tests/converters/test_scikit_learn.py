"""What scikit-learn fits, as its exporter writes it: one candidate, which keeps what was fitted."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import tree_models
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from edgekit import bundle, selftest
from edgekit.engines import LoadedBundle


def forest(pixels, labels):
    fitted = RandomForestClassifier(8, max_depth=6, random_state=0).fit(pixels, labels)
    return tree_models.forest(fitted), fitted.predict


def linear(pixels, labels):
    scaler = StandardScaler().fit(pixels)
    fitted = LogisticRegression(max_iter=200).fit(scaler.transform(pixels), labels)
    return tree_models.linear(fitted, scaler), lambda rows: fitted.predict(scaler.transform(rows))


@pytest.mark.parametrize("make", [forest, pytest.param(linear, marks=pytest.mark.proof)])
def test_a_classifier_is_built_as_it_is_and_tells_what_it_was_fitted_to(make, run_build, tmp_path):
    data = load_digits()
    pixels, labels = (data.data / 16).astype(np.float32), data.target.astype(np.int64)
    made, predict = make(pixels[:600], labels[:600])
    onnx.save(made, tmp_path / "model.onnx")
    np.savez(tmp_path / "calib.npz", x=pixels[600:700, None])
    np.savez(tmp_path / "eval.npz", x=pixels[700:900, None], labels=labels[700:900])
    result = run_build(
        tmp_path / "model.onnx", "--name", "m", "--version", "1", "--shape", "x=1,64", "--calibration",
        tmp_path / "calib.npz", "--evaluation", tmp_path / "eval.npz", "--target", "x86-64-v3", "--accept-uncertain",
        "--out", tmp_path / "dist", "--json", tmp_path / "r.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "r.json").read_text())
    (entry,) = told["bundles"]
    assert entry["recipe"] == "onnxruntime/fp32"
    assert entry["accuracy"]["drop"] == 0
    for engine in ("openvino", "litert"):
        reasons = [one["reason"] for one in told["candidates"] if one["recipe"].startswith(engine)]
        assert all("ai.onnx.ml" in reason for reason in reasons), reasons
    found = bundle.read(Path(entry["path"]))
    found.extract(tmp_path / "b")
    loaded = LoadedBundle(found.manifest, tmp_path / "b")
    assert selftest.check(found.manifest, loaded, tmp_path / "b").passed
    answers = [loaded.run({"x": row[None]})["output_label"] for row in pixels[700:730]]
    assert np.array_equal(np.concatenate(answers), predict(pixels[700:730]))
    loaded.close()
