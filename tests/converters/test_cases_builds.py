"""Whole builds that go wrong late, or in the user's own code: a sentence, and nothing half-written."""

import re
import textwrap

import numpy as np
import pytest

from edgekit import evidence

CODE = """
    import numpy as np

    def samples():
        for index in range(90):
            if index == 70:
                {}["no such key"]
            yield {"x": np.zeros((1, 1, 8, 8), np.float32)}

    def number():
        return 3

    def metric(outputs, labels):
        return outputs["nothing"]

    def factory():
        raise ValueError("two\\nlines")
"""


@pytest.fixture
def words(digits, tmp_path):
    """Flags of a build of one quick candidate, with the user's code beside."""
    (tmp_path / "own.py").write_text(textwrap.dedent(CODE))
    return [
        *digits.flags("model.onnx", "x86-64-v3"),
        "--recipe",
        "onnxruntime/fp32",
        "--out",
        tmp_path / "dist",
    ]


@pytest.mark.parametrize(
    ("flag", "name", "told"),
    [
        ("--evaluation", "samples", "own.py, line 7: KeyError: 'no such key'"),
        ("--evaluation", "number", "not iterable"),
        ("--metric", "metric", "own.py, line 14: KeyError: 'nothing'"),
        ("", "factory", "own.py, line 17: ValueError: lines"),
    ],
)
def test_the_users_code_fails_with_its_file_and_line(flag, name, told, words, run_build, tmp_path):
    own = f"{tmp_path / 'own.py'}:{name}"
    if flag in words:
        words[words.index(flag) + 1] = own
    elif flag:
        words += [flag, own]
    else:
        words[0] = own
    result = run_build(*words)
    assert result.exit_code == 2
    assert told in str(result.exception)
    assert "\n" not in str(result.exception)
    assert not list(tmp_path.rglob("*.edgekit"))


def test_a_bundle_without_evidence_does_not_stay_behind(words, run_build, tmp_path, monkeypatch):
    def broken(value):
        raise TypeError("a number that JSON does not know")

    monkeypatch.setattr(evidence, "encode", broken)
    with pytest.raises(TypeError):
        run_build(*words)
    assert [path for path in (tmp_path / "dist").rglob("*") if path.is_file()] == []


def test_a_source_that_answers_nan_is_refused_with_the_sample(digits, words, run_build, tmp_path):
    with np.load(digits.folder / "eval.npz") as data:
        arrays = dict(data)
    arrays["x"][10:30] = np.nan
    np.savez(tmp_path / "nan.npz", **arrays)
    words[words.index("--evaluation") + 1] = tmp_path / "nan.npz"
    result = run_build(*words)
    assert result.exit_code == 2
    (told,) = re.findall(r"'logits' of the source is NaN on evaluation sample (\d+)", str(result.exception))
    assert 10 <= int(told) < 30
    assert not list(tmp_path.rglob("*.edgekit"))
