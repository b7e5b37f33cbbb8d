"""Keras files and SavedModels as sources: made TFLite in float by TensorFlow, in a process of its own environment.

Always true
 1. TensorFlow never loads in this process, nor beside torch: it runs in the Python that `$EDGEKIT_TENSORFLOW` names, or
    else in a child of this one where it is installed.
 2. A model is converted once for each content, shape and TensorFlow; the workers of a build share the file.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from converters.source import places
from converters.source.code import CodeGate
from converters.source.project import Project
from converters.source.source import Source
from edgekit.distribution import extra
from edgekit.errors import SourceError

SUFFIXES = (".keras", ".h5", ".hdf5")
PYTHON = "EDGEKIT_TENSORFLOW"
CHILD = Path(__file__).with_name("tensorflow_child.py")
TIMEOUT_S = 900
# The way that needs no TensorFlow.
BY_TORCH = (
    "Or, with Keras 3 and KERAS_BACKEND=torch (pip install keras torch): model = keras.saving.load_model('model.keras');"
    " model.eval(); torch.export.save(torch.export.export(model, (torch.zeros(1, 8, 8, 1),), strict=False), 'model.pt2'),"
    " with your input's shape; build from that .pt2"
)
_VERSION = "import importlib.metadata as m; print([d.version for d in m.distributions() if d.name.startswith('tensorflow')])"


def is_one(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES or (path / "saved_model.pb").is_file()


def open_file(project: Project, path: Path, gate: CodeGate) -> Source:
    """The TFLite file that TensorFlow makes of it, as a source. Raises: SourceError, ProjectError."""
    from converters.source import tflite_source

    if not path.exists():
        raise SourceError(f"{path}: there is no such model file")
    python = _python(path)
    gate.admit(path, "the source, which TensorFlow loads")
    return tflite_source.open_file(project, _converted(project, path, python))


def _python(path: Path) -> str:
    """Raises: SourceError where TensorFlow is nowhere."""
    named = os.environ.get(PYTHON)
    if named:
        if not Path(named).is_file():
            raise SourceError(f"{PYTHON} = {named}: there is no such Python")
        return named
    if find_spec("tensorflow") is None:
        raise SourceError(
            f"{path}: Keras files and SavedModels are converted by TensorFlow, which is not installed: {extra('tensorflow')},"
            f" or set {PYTHON} to the Python of an environment that has it. {BY_TORCH}"
        )
    return sys.executable


def _converted(project: Project, path: Path, python: str) -> Path:
    shapes = {name: list(declared.largest) for name, declared in project.file.inputs.items()}
    version = _run([python, "-I", "-c", _VERSION], path).stdout.strip()
    key = sha256(json.dumps([_content(path), shapes, version, CHILD.read_text()]).encode()).hexdigest()
    kept = places.cache("tensorflow") / f"{key}.tflite"
    if kept.is_file():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        made = Path(folder) / "model.tflite"
        done = _run([python, "-I", str(CHILD), str(path), str(made), json.dumps(shapes)], path)
        if done.returncode or not made.is_file():
            raise SourceError(f"{path}: {_reason(done)}")
        made.replace(kept)
    return kept


def _run(words: Sequence[str], path: Path) -> "subprocess.CompletedProcess[str]":
    quiet = {
        **os.environ,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
        "KERAS_BACKEND": "tensorflow",
    }
    try:
        return subprocess.run(
            words, capture_output=True, text=True, check=False, timeout=TIMEOUT_S, env=quiet
        )
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"{path}: TensorFlow did not convert it within {TIMEOUT_S} s") from error
    except OSError as error:
        raise SourceError(f"{words[0]}: cannot be run ({error})") from error


def _reason(done: "subprocess.CompletedProcess[str]") -> str:
    """What the child told, or how it ended."""
    for line in reversed(done.stdout.splitlines()):
        if line.startswith('{"error"'):
            return f"TensorFlow cannot convert it: {json.loads(line)['error']}. {BY_TORCH}"
    last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
    return f"TensorFlow ended with status {done.returncode}: {last[:300]}"


def _content(path: Path) -> str:
    """A digest of the file, or of all files of the folder with their names."""
    digest = sha256()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for file in files:
        digest.update(str(file.relative_to(path)).encode() + b"\0")
        digest.update(sha256(file.read_bytes()).digest())
    return digest.hexdigest()
