"""What the comparison of converters says of all models: against the best single peer, against the best of all peers on each
model, of build times, and of what is left to the machine's peak. Figures of `run.compare` in, tables out.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import peak
from peers import PEERS
from rich.console import Console
from rich.table import Table

OURS = "edgekit"
# Of a normal distribution, on either side of its middle.
SPREAD_95 = 1.96


def summary(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Speed over the best single peer: the one that, over all models that it could do, leaves us least ahead."""
    speeds: dict[str, list[float]] = {tool: [] for tool in PEERS}
    failures = dict.fromkeys((OURS, *PEERS), 0)
    slower: list[str] = []
    for result in results:
        for row in result["rows"]:
            failures[row["tool"]] += bool(row["failure"])
            if row["ratio"]:
                speeds[row["tool"]].append(1 / row["ratio"][1])
                if row["ratio"][0] > 1:
                    slower.append(f"{result['model']}: {row['tool']} ({row['ratio'][1]:.2f})")
    means = {tool: math.exp(sum(map(math.log, each)) / len(each)) for tool, each in speeds.items() if each}
    # A tool that gave nothing runnable for a model is not the best over all models.
    most = max(map(len, speeds.values()), default=0)
    whole = {tool: mean for tool, mean in means.items() if len(speeds[tool]) == most}
    best = min(whole, key=lambda tool: whole[tool], default="")
    to_best = {item["model"]: item["to_best"] for item in results if item["to_best"]}
    return {"to_best": to_best, "to_best_mean": geometric_mean(list(to_best.values())),
            "best_single": best, "speed_over_best_single": means.get(best), "speed_over": means, "slower_than": slower,
            "failures": failures, "second_build_s": {item["model"]: item["second_build_s"] for item in results}}  # fmt: skip


def geometric_mean(ratios: Sequence[tuple[float, float, float]]) -> tuple[float, float, float] | None:
    """Of ratios with their 95 % intervals, which are taken as those of normal distributions of the logarithm."""
    if not ratios:
        return None
    logs = np.log(np.asarray(ratios))
    spread = (logs[:, 2] - logs[:, 0]) / (2 * SPREAD_95)
    middle, half = logs[:, 1].mean(), SPREAD_95 * float(np.sqrt((spread**2).sum())) / len(logs)
    low, mean, high = (math.exp(middle + offset) for offset in (-half, 0.0, half))
    return low, mean, high


def overview(results: Sequence[Mapping[str, Any]], peaks: Mapping[str, float]) -> Table:
    """One line a model: against the best of all peers, the build's time, and what is left to the machine's peak."""
    told = ", ".join(f"{name} {peak:.0f}" for name, peak in peaks.items())
    table = Table(title=f"the best of all peers on each model; peaks in GMAC/s: {told}")
    for column in (
        "model", "ours", "p50 ms", "best peer", "ours / best", "build s", "same engines s", "peers' s",
        "same / peers", "their processes' s", "share of peak",
    ):  # fmt: skip
        table.add_column(column, justify="left" if column in ("model", "ours", "best peer") else "right")
    for result in results:
        ours, peers_s = result["rows"][0], result["peers_build_s"]
        reached = peak.share(result["macs"], ours["p50_ms"], result["precision"], peaks)
        table.add_row(
            result["model"],
            ours["note"] or ours["failure"][:40],
            f"{ours['p50_ms']:.3f}",
            result["best"],
            _interval(result["to_best"]),
            f"{ours['build_s']:.0f}",
            f"{result['same_build_s']:.0f}",
            f"{peers_s:.1f}",
            f"{result['same_build_s'] / peers_s:.1f}" if peers_s else "",
            f"{result['peers_whole_s']:.0f}",
            "" if reached is None else f"{reached:.0%} of {result['precision']}",
        )
    mean = geometric_mean([item["to_best"] for item in results if item["to_best"]])
    table.add_row("geometric mean", "", "", "", _interval(mean))
    return table


def _interval(ratio: Sequence[float] | None) -> str:
    return f"{ratio[1]:.2f} ({ratio[0]:.2f} to {ratio[2]:.2f})" if ratio else ""


def show(result: Mapping[str, Any], console: Console) -> None:
    table = Table(
        title=f"{result['model']}: {result['metric']}, source {result['source']:.4f}, limit {result['limit']:g},"
        f" {result['samples']} samples, {result['threads'] or 'all'} threads,"
        f" second build {result['second_build_s']:.1f} s"
    )
    for column in ("tool", "accuracy", "drop", "p50 ms", "ours / theirs", "MB", "build s", "remark"):
        table.add_column(column, justify="left" if column in ("tool", "remark") else "right")
    for row in result["rows"]:
        remark = (
            row["failure"] or row["note"] or (f"counts as {row['counts_as']}" if row["counts_as"] else "")
        )
        figures = [f"{row[key]:.4f}" for key in ("accuracy", "drop")] + [f"{row['p50_ms']:.3f}"]
        told = _interval(row["ratio"])
        size = f"{row['size_bytes'] / 1e6:.2f}"
        table.add_row(row["tool"], *figures, told, size, f"{row['build_s']:.1f}", remark[:160])
    console.print(table)
    console.print(f"  our first build: {result['spent']}")
