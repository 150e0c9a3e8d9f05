"""The table of bench/compare, from the figures in results.json."""

import statistics

OURS = "lazystore"
IMAGE_PEERS = ("virtio-blk", "qemu-storage-daemon")
GUEST_JOBS = {"find": "`find` over the whole store", "small": "2,000 small files", "libs": "100 MB of libraries",
              "seq": "the largest file, `dd`", "programs": "cold start of a program"}
# The figures of a guest's job. The last two are from the guest's /sys/block/DISK/stat: reads, and io_ticks.
JOB_FIGURES = {"seconds": "", "requests": ": requests", "io_s": ": time in I/O"}
STAT, GLOB = "look at every inode", "2,000 small files found by a glob"
LINK = "first look at one of 100,000 symlinks"
# Title, job, VM. For the image a first and a second VM are the same, and there are no plans.
SCAN_ROWS = [(f"{STAT}, first VM", "stat", "first"), (f"{STAT}, second VM", "stat", "second"),
             (f"{GLOB}, first VM", "glob", "first"), (f"{GLOB}, second VM", "glob", "second"),
             (f"{GLOB}, cold host, plans kept", "glob", "cold, kept plans"), (f"{GLOB}, cold host", "glob", "cold"),
             (f"{LINK}, first VM", "symlinks", "first"), (f"{LINK}, second VM", "symlinks", "second")]
VM_OF_IMAGE = {"first": "any", "second": "any", "cold, kept plans": "cold", "cold": "cold"}
BLOCK_ROWS = {"4k-qd1": "4 KiB random, QD1", "4k-qd32": "4 KiB random, QD32", "128k-seq": "128 KiB sequential, QD8",
              "4k-qd32-every": "4 KiB random over every file, QD32"}
BLOCK_FIGURES = {"iops": ("reads/s", "{:,.0f}"), "mean_us": ("µs mean", "{:,.1f}"), "p50_us": ("µs p50", "{:,.1f}"),
                "p99_us": ("µs p99", "{:,.1f}"), "server_cpu_us_per_read": ("µs CPU of the server a read", "{:,.1f}")}


def median(values):
    values = [value for value in values if value is not None]
    return statistics.median(values) if values else None


def seconds(value):
    return f"{value * 1e3:,.1f} ms" if value < 1 else f"{value:,.1f} s"


def tenths_of_megabytes(value):
    return f"{value / 1e6:,.1f} MB"


def megabytes(value):
    return f"{value / 1e6:,.0f} MB" if value else "0"


class Rows:
    """A table with a column for each peer. A cell has the peer's value, and lazystore's as a multiple of it."""

    def __init__(self, peers):
        self.peers, self.lines = peers, []

    def add(self, title, values, show):
        """Adds a row of values by peer. A cell without a value is empty; a row without any value is left out."""
        ours = values.get(OURS)
        cells = []
        for peer in self.peers:
            value = values.get(peer)
            if value is None:
                cells.append("")
            elif peer == OURS or not value or ours is None:
                cells.append(show(value))
            else:
                cells.append(f"{show(value)} ({ratio(ours / value)})")
        if any(cells):
            self.lines.append(f"| {title} | " + " | ".join(cells) + " |")

    def text(self):
        head = ["", *self.peers]
        return "| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|\n" + "\n".join(self.lines) + "\n"


def ratio(value):
    return f"{value:.2f}" if value >= 0.01 else f"{value:.1g}"


# --- values -----------------------------------------------------------------


def guests(results, peer):
    return [run for run in results["guests"] if run["peer"] == peer and "failed" not in run]


def job_value(run, job, key):
    """A figure of a job; for `programs` the mean over all programs."""
    names = [name for name in run["jobs"] if name == job or job == "programs" and name.startswith("program:")]
    found = [run["jobs"][name].get(key) for name in names if run["jobs"][name]["status"] == 0]
    return statistics.mean(found) if found and None not in found else None


def job_seconds(run, job):
    return job_value(run, job, "seconds")


def scan_values(results, job, vm, key, peers):
    """The median of one figure, by peer."""
    def of(peer):
        its_vm = vm if peer == OURS else VM_OF_IMAGE[vm]
        return median(run.get(key) for run in results["scans"]
                      if run["peer"] == peer and run["job"] == job and run["vm"] == its_vm)
    return {peer: of(peer) for peer in peers}


def mkfs_s(results):
    return median(run["seconds"] for run in results["mkfs"])


def ready_s(results, peer):
    """Seconds until a guest can be attached, including mkfs.erofs if the peer needs an image."""
    if peer == OURS and results["ready"]:
        return median(run["seconds"] for run in results["ready"])
    own = median(run["ready_s"] for run in guests(results, peer))
    if own is None:
        return None
    return own + mkfs_s(results) if peer in IMAGE_PEERS else own


def mounted_s(results, peer):
    """Seconds from the command to the guest's mount, for a new closure."""
    found = median(run["started_s"] + run["mounted_s"] for run in guests(results, peer))
    return None if found is None else found + (mkfs_s(results) if peer in IMAGE_PEERS else 0)


# --- rows -------------------------------------------------------------------


def table(results):
    runs = [*results["guests"], *results["scans"]]
    peers = list(dict.fromkeys([OURS, *(run["peer"] for run in runs)]))
    if results["blocks"] and "qemu-storage-daemon" not in peers:
        peers.append("qemu-storage-daemon")
    rows = Rows(peers)
    ready_rows(rows, results, peers)
    guest_rows(rows, results, peers)
    scan_rows(rows, results, peers)
    block_rows(rows, results)
    return heading(results) + rows.text() + notes(results)


def ready_rows(rows, results, peers):
    by_peer = lambda value: {peer: value(results, peer) for peer in peers}
    rows.add("time to ready, closure new", by_peer(ready_s), seconds)
    rows.add("time to ready, with a directory of its plans",
             {OURS: median(run["seconds"] for run in results["ready_kept"])}, seconds)
    written = median(run["written_bytes"] for run in results["mkfs"])
    rows.add("bytes written until ready", {peer: written if peer in IMAGE_PEERS else 0 for peer in peers}, megabytes)
    peaks = {OURS: median(run["peak_kib"] for run in results["ready"])}
    peaks |= {peer: median(run["peak_kib"] for run in results["mkfs"]) for peer in peers if peer in IMAGE_PEERS}
    rows.add("peak memory until ready", {p: kib and kib * 1024 for p, kib in peaks.items()}, megabytes)
    rows.add("from the command to the guest's mount, closure new", by_peer(mounted_s), seconds)
    booted = lambda results, peer: median(run["mounted_s"] for run in guests(results, peer))
    rows.add("of this: from boot to mount", by_peer(booted), seconds)


def guest_rows(rows, results, peers):
    for job, title in GUEST_JOBS.items():
        for key, unit in JOB_FIGURES.items():
            values = {p: median(job_value(run, job, key) for run in guests(results, p)) for p in peers}
            rows.add(f"guest: {title}{unit}", values, shown(key))
    cpu = lambda run: run["server_cpu_s"] + run["qemu_cpu_s"]
    rows.add("CPU of server and QEMU, boot and all jobs",
             {p: median(cpu(run) for run in guests(results, p)) for p in peers}, seconds)
    peak = {p: median(run["server_peak_kib"] * 1024 for run in guests(results, p)) for p in peers}
    rows.add("peak RSS of the server", {p: value for p, value in peak.items() if value}, megabytes)


def scan_rows(rows, results, peers):
    for title, job, vm in SCAN_ROWS:
        for key, unit in JOB_FIGURES.items():
            rows.add(f"guest: {title}{unit}", scan_values(results, job, vm, key, peers), shown(key))
        if job == "stat":
            rows.add(f"guest: {title}: CPU of the worker", scan_values(results, job, vm, "worker_cpu_s", peers), seconds)
            private = scan_values(results, job, vm, "worker_private_kib", peers)
            rows.add(f"guest: {title}: private memory of the worker",
                     {p: kib and kib * 1024 for p, kib in private.items()}, tenths_of_megabytes)
    calls = sum(results["walks"].values()) if results["walks"] else None
    rows.add(f"{STAT}, second VM: statx, getdents64, readlinkat by the worker", {OURS: calls}, "{:,}".format)


def shown(key):
    return "{:,.0f}".format if key == "requests" else seconds


def block_rows(rows, results):
    for case, title in BLOCK_ROWS.items():
        for name, (unit, form) in BLOCK_FIGURES.items():
            values = {peer: median(run.get(peer, {}).get(case, {}).get(name) for run in results["blocks"])
                      for peer in rows.peers}
            rows.add(f"{title}: {unit}", values, form.format)


def heading(results):
    closure, machine = results["closure"], results["machine"]
    rounds, scans = (max((run["round"] + 1 for run in results[part]), default=0) for part in ("guests", "scans"))
    held = ", held in memory" if results["closure_held"] and results["image_held"] else ""
    return (f"{closure['paths']} paths, {closure['files']:,} files, {closure['bytes'] / 1e9:.2f} GB{held}. {machine['cores']} x"
            f" {machine['cpu']}, {machine['memory_gb']} GB, Linux {machine['kernel']}, {results['date']}; load"
            f" {machine['load']:.1f} at the start. {len(results['blocks'])} rounds of blocks, {rounds} of guests,"
            f" {scans} of guests that look into every path, medians;"
            " in brackets: lazystore as a multiple of the peer.\n\n")


def notes(results):
    lines = []
    if results["blocks"]:
        pread = median(run["pread"]["4k-qd1"]["mean_us"] for run in results["blocks"])
        lines.append(f"A pread loop over the image takes {pread:.2f} µs for 4 KiB.")
    lines += [f"{entry['paths']:,} registered paths are ready in {seconds(median(entry['lazystore_s']))}."
              for entry in results["by_paths"]]
    failed = {run["peer"] for run in results["guests"] if "failed" in run}
    lines += [f"A guest with {peer} failed: see results.json." for peer in sorted(failed)]
    return "\n" + "\n".join(lines) + "\n" if lines else ""
