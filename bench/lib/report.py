"""The table of bench/compare, from the figures in results.json."""

import statistics

OURS = "lazystore"
IMAGE = "mkfs.erofs"
IMAGE_PEERS = ("virtio-blk", "qemu-storage-daemon")
GUEST_JOBS = {"find": "`find` over the whole store", "small": "2,000 small files", "libs": "100 MB of libraries",
              "seq": "the largest file, `dd`", "programs": "cold start of a program"}
BLOCK_ROWS = {"4k-qd1": "4 KiB random, QD1", "4k-qd32": "4 KiB random, QD32", "128k-seq": "128 KiB sequential, QD8",
              "4k-qd32-every": "4 KiB random over every file, QD32"}
BLOCK_VALUES = {"iops": ("reads/s", "{:,.0f}"), "mean_us": ("µs mean", "{:,.1f}"), "p50_us": ("µs p50", "{:,.1f}"),
                "p99_us": ("µs p99", "{:,.1f}"), "server_cpu_us_per_read": ("µs CPU of the server a read", "{:,.1f}")}


def median(values):
    values = [value for value in values if value is not None]
    return statistics.median(values) if values else None


def seconds(value):
    return f"{value * 1e3:,.1f} ms" if value < 1 else f"{value:,.1f} s"


def megabytes(value):
    return f"{value / 1e6:,.0f} MB" if value else "0"


class Rows:
    """A table whose columns are peers: value, and ours as a multiple of it."""

    def __init__(self, peers):
        self.peers, self.lines = peers, []

    def add(self, title, values, show):
        """`values` by peer; what is missing is left empty."""
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


def job_seconds(run, job):
    if job == "programs":
        all_of_them = [values["seconds"] for name, values in run["jobs"].items()
                       if name.startswith("program:") and values["status"] == 0]
        return statistics.mean(all_of_them) if all_of_them else None
    values = run["jobs"].get(job)
    return values["seconds"] if values and values["status"] == 0 else None


def mkfs_s(results):
    return median(run["seconds"] for run in results["mkfs"])


def ready_s(results, peer):
    """Until a guest can be attached: with the image, for those who need one."""
    if peer == OURS and results["ready"]:
        return median(run["seconds"] for run in results["ready"])
    own = median(run["ready_s"] for run in guests(results, peer))
    if own is None:
        return None
    return own + mkfs_s(results) if peer in IMAGE_PEERS else own


def mounted_s(results, peer):
    """From the command to the guest's mount, the closure being new."""
    found = median(run["started_s"] + run["mounted_s"] for run in guests(results, peer))
    return None if found is None else found + (mkfs_s(results) if peer in IMAGE_PEERS else 0)


# --- rows -------------------------------------------------------------------


def table(results):
    peers = list(dict.fromkeys([OURS, *(run["peer"] for run in results["guests"])]))
    if results["blocks"] and "qemu-storage-daemon" not in peers:
        peers.append("qemu-storage-daemon")
    rows = Rows(peers)
    ready_rows(rows, results, peers)
    guest_rows(rows, results, peers)
    block_rows(rows, results)
    return heading(results) + rows.text() + notes(results)


def ready_rows(rows, results, peers):
    by_peer = lambda value: {peer: value(results, peer) for peer in peers}
    rows.add("time to ready, closure new", by_peer(ready_s), seconds)
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
        rows.add(f"guest: {title}",
                 {p: median(job_seconds(run, job) for run in guests(results, p)) for p in peers}, seconds)
    asked = lambda job: {p: median(run["jobs"].get(job, {}).get("requests") for run in guests(results, p)) for p in peers}
    for job in ("find", "small", "libs"):
        rows.add(f"requests for {GUEST_JOBS[job]}", asked(job), "{:,.0f}".format)
    cpu = lambda run: run["server_cpu_s"] + run["qemu_cpu_s"]
    rows.add("CPU of server and QEMU, boot and all jobs",
             {p: median(cpu(run) for run in guests(results, p)) for p in peers}, seconds)
    peak = {p: median(run["server_peak_kib"] * 1024 for run in guests(results, p)) for p in peers}
    rows.add("peak RSS of the server", {p: value for p, value in peak.items() if value}, megabytes)


def block_rows(rows, results):
    for case, title in BLOCK_ROWS.items():
        for name, (unit, form) in BLOCK_VALUES.items():
            values = {peer: median(run.get(peer, {}).get(case, {}).get(name) for run in results["blocks"])
                      for peer in rows.peers}
            rows.add(f"{title}: {unit}", values, form.format)


def heading(results):
    closure, machine = results["closure"], results["machine"]
    rounds = max((run["round"] + 1 for run in results["guests"]), default=0)
    held = ", held in memory" if results["closure_held"] and results["image_held"] else ""
    return (f"{closure['paths']} paths, {closure['files']:,} files, {closure['bytes'] / 1e9:.2f} GB{held}. {machine['cores']} x"
            f" {machine['cpu']}, {machine['memory_gb']} GB, Linux {machine['kernel']}, {results['date']}; load"
            f" {machine['load']:.1f} at the start. {len(results['blocks'])} rounds of blocks, {rounds} of guests, medians;"
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
