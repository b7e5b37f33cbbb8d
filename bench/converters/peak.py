"""What this machine computes at most: one large matrix product by oneDNN (through torch), in each precision.

The share of it that a model reaches says what is left: its multiply-accumulates over its time and the peak of the
precision that its products have. The count is the graph's, so it is exact where all shapes are known; the peak is
what the best kernel at hand reaches, not what the maker of the CPU promises.

    python bench/converters/peak.py THREADS
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

SIZE = 2048
RUNS = 8


def peaks(threads: int) -> dict[str, float]:
    """Billions of multiply-accumulates a second by precision, in a process of its own: torch's threads would stay."""
    done = subprocess.run(
        [sys.executable, __file__, str(threads)], capture_output=True, text=True, check=True, timeout=300
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def share(macs: int, p50_ms: float, precision: str, peak: Mapping[str, float]) -> float | None:
    """0..1; None where the graph's work or the peak is not known."""
    limit = peak.get(precision, 0.0)
    return macs / (p50_ms / 1e3) / (limit * 1e9) if macs and limit else None


def main(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    ones = torch.rand(SIZE, SIZE)
    few = torch.randint(-8, 8, (SIZE, SIZE), dtype=torch.int8)
    half = ones.bfloat16()
    products: Mapping[str, Callable[[], object]] = {
        "fp32": lambda: ones @ ones,
        "bf16": lambda: half @ half,
        # What torch has of int8 products on a CPU has no public name (torch 2.13).
        "int8": lambda: torch._int_mm(few, few),  # noqa: SLF001  # as said
    }
    print(json.dumps({name: SIZE**3 / _least(run) / 1e9 for name, run in products.items()}))


def _least(run: Callable[[], object]) -> float:
    """Seconds of the fastest run, after one to warm up."""
    run()
    found = []
    for _ in range(RUNS):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return min(found)


if __name__ == "__main__":
    main(int(sys.argv[1]))
