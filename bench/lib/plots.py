#!/usr/bin/env python3
"""Draws a run of bench/compare: plots.py DIR reads DIR/results.json. Needs matplotlib; bench/compare has a venv for it."""

import json
import pathlib
import statistics
import sys

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "lazystore"
matplotlib.rcParams["svg.fonttype"] = "none"
from matplotlib import pyplot  # noqa: E402

import report  # noqa: E402

QUANTILES = ["p50_us", "p90_us", "p99_us", "p99.9_us"]


def save(figure, out, name):
    figure.tight_layout()
    figure.savefig(out / f"{name}.svg", metadata={"Date": None})
    pyplot.close(figure)


def latency(results, out):
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.4))
    for axis, case in zip(axes, ("4k-qd1", "4k-qd32")):
        for peer in (report.OURS, "qemu-storage-daemon"):
            values = [statistics.median(run[peer][case][q] for run in results["blocks"]) for q in QUANTILES]
            axis.plot([q.removesuffix("_us") for q in QUANTILES], values, marker="o", label=peer)
        axis.set_title(report.BLOCK_ROWS[case])
        axis.set_yscale("log")
        axis.set_ylabel("µs")
        axis.grid(alpha=0.3)
    axes[0].legend()
    save(figure, out, "latency")


def boot(results, out):
    """Time from the command to the end of the guest's jobs, for a new closure."""
    peers = list(dict.fromkeys(run["peer"] for run in results["guests"] if "failed" not in run))
    figure, axis = pyplot.subplots(figsize=(9, 0.6 * len(peers) + 1.4))
    labels = ["mkfs.erofs", "server", "boot to mount", *(report.GUEST_JOBS[job] for job in ("find", "small", "libs"))]
    for index, label in enumerate(labels):
        left = [sum(parts(results, peer)[:index]) for peer in peers]
        axis.barh(peers, [parts(results, peer)[index] for peer in peers], left=left, label=label.replace("`", ""))
    axis.invert_yaxis()
    axis.set_xlabel("seconds")
    axis.legend(fontsize="small", ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.25))
    save(figure, out, "boot")


def parts(results, peer):
    runs = report.guests(results, peer)
    image_s = report.mkfs_s(results) if peer in report.IMAGE_PEERS else 0
    median = lambda value: statistics.median(value(run) or 0 for run in runs)
    return [image_s, median(lambda run: run["started_s"]), median(lambda run: run["mounted_s"]),
            *(median(lambda run, job=job: report.job_seconds(run, job)) for job in ("find", "small", "libs"))]


def cost(results, out):
    figure, axis = pyplot.subplots(figsize=(6, 3.6))
    points = sorted(results["by_size"], key=lambda entry: entry["bytes"])
    full = results["closure"]["bytes"]
    sizes = [entry["bytes"] / 1e9 for entry in points] + [full / 1e9]
    ours = [statistics.median(entry["lazystore_s"]) for entry in points] + [report.ready_s(results, report.OURS)]
    theirs = [entry["mkfs_s"] for entry in points] + [report.mkfs_s(results)]
    axis.plot(sizes, theirs, marker="o", label="mkfs.erofs")
    axis.plot(sizes, ours, marker="o", label="lazystore")
    axis.set(xscale="log", yscale="log", xlabel="closure, GB", ylabel="seconds to ready")
    axis.grid(alpha=0.3)
    axis.legend()
    save(figure, out, "cost")


def main():
    out = pathlib.Path(sys.argv[1])
    results = json.loads((out / "results.json").read_text())
    if results["blocks"]:
        latency(results, out)
    if any("failed" not in run for run in results["guests"]):
        boot(results, out)
    if results["by_size"]:
        cost(results, out)


if __name__ == "__main__":
    main()
