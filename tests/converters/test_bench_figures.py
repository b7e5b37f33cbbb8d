"""The figures of `bench/converters`, apart from what it runs."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "bench/converters"


@pytest.fixture(name="tables")
def _tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("tables", "peak", "peers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("tables")


def test_the_mean_of_a_half_and_its_double_is_one_and_its_interval_is_narrower(tables: ModuleType) -> None:
    low, mean, high = tables.geometric_mean([(0.4, 0.5, 0.625), (1.6, 2.0, 2.5)])

    assert mean == pytest.approx(1)
    assert low == pytest.approx(0.8 ** (1 / 2**0.5))
    assert high == pytest.approx(1 / low)


def test_no_model_has_no_mean(tables: ModuleType) -> None:
    assert tables.geometric_mean([]) is None


def test_a_tool_that_gave_nothing_for_a_model_is_not_the_best_over_all(tables: ModuleType) -> None:
    def row(tool: str, ratio: float | None) -> dict[str, object]:
        return {"tool": tool, "failure": "" if ratio else "died", "ratio": ratio and (ratio, ratio, ratio)}

    ours = {"tool": "edgekit", "failure": "", "ratio": None}

    def result(model: str, **ratios: float | None) -> dict[str, object]:
        rows = [ours, *(row(tool.replace("_", " "), ratio) for tool, ratio in ratios.items())]
        return {"model": model, "second_build_s": 1.0, "to_best": (0.9, 0.9, 0.9), "rows": rows}

    found = tables.summary(
        [
            result("a", openvino_default=0.8, onnxruntime_float=1.1),
            result("b", openvino_default=0.8, onnxruntime_float=None),
        ]
    )

    assert found["best_single"] == "openvino default"
    assert found["slower_than"] == ["a: onnxruntime float (1.10)"]
    assert found["failures"]["onnxruntime float"] == 1


def test_a_share_of_the_peak_is_told_only_where_the_work_is_known(tables: ModuleType) -> None:
    peaks = {"int8": 100.0}

    assert tables.peak.share(50_000_000, 1.0, "int8", peaks) == pytest.approx(0.5)
    assert tables.peak.share(0, 1.0, "int8", peaks) is None
    assert tables.peak.share(50_000_000, 1.0, "", peaks) is None
