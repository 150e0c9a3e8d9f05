"""The measurements of bench/compare. Each returns plain numbers for each run; the report computes medians."""

import json
import os
import pathlib
import random
import resource
import subprocess
import tempfile
import time

from . import guest
from .peers import Lazystore, PEERS

BLOCK_CASES = {
    "4k-qd1": ["--bs", "4k", "--qd", "1"],
    "4k-qd32": ["--bs", "4k", "--qd", "32"],
    "128k-seq": ["--bs", "128k", "--qd", "8", "--rw", "seq"],
}
# Of few enough files to keep them open, and small enough to read before every measurement.
HOT_BYTES = 128 << 20


# --- until a disk can be attached -------------------------------------------


def make_image(setup, excluded=()):
    """mkfs.erofs with default options: seconds, bytes written, its peak memory in KiB."""
    setup.image.unlink(missing_ok=True)
    command = ["mkfs.erofs", "--quiet", f"-U{guest.DISK_UUID}", *(f"--exclude-path={name}" for name in excluded),
               setup.image, setup.store_dir]
    begin = time.monotonic()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"mkfs.erofs ended with status {process.returncode}")
    seconds = time.monotonic() - begin
    return {"seconds": seconds, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_kib": usage.ru_maxrss,
            "written_bytes": setup.image.stat().st_blocks * 512}


def become_ready(setup):
    """lazystore until its ready line: seconds from exec, peak memory in KiB, bytes written."""
    server = Lazystore(setup).start()
    try:
        return {"seconds": server.ready_s, "peak_kib": server.peak_kib, "written_bytes": server.written_bytes()}
    finally:
        server.stop()


def cost_by_size(setup, info, names, sizes, parts):
    """For each part of the closure: its bytes, and the seconds that lazystore and mkfs.erofs need until it can be attached."""
    for part in parts:
        kept = set(names[:max(1, round(len(names) * part))])
        listed = setup.work / "part"
        listed.write_text("".join(f"/nix/store/{name}\n" for name in sorted(kept)))
        closure = ["--store-paths", listed, "--registration", info / "registration", *setup.root]
        ours = [become_ready(setup.with_closure(closure))["seconds"] for _ in range(5)]
        theirs = make_image(setup, [name for name in names if name not in kept])["seconds"]
        total = sum(size for name, size in sizes.items() if name.split("/")[0] in kept)
        yield {"bytes": total, "paths": len(kept), "lazystore_s": ours, "mkfs_s": theirs}


def cost_by_paths(setup, counts, rounds):
    """Seconds to ready for closures with the given numbers of empty paths."""
    memory = pathlib.Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else setup.work) as root:
        root = pathlib.Path(root)
        for count in counts:
            store = root / "nix/store"
            store.mkdir(parents=True, exist_ok=True)
            names = [f"{index:032d}-path" for index in range(count)]
            for name in names:
                (store / name).mkdir(exist_ok=True)
            (root / "store-paths").write_text("".join(f"/nix/store/{name}\n" for name in names))
            # The registered size only needs to be at least that of the path: the NAR of an empty directory has 96 bytes.
            record = "sha256:" + "0" * 52 + "\n112\n\n0\n"
            (root / "registration").write_text("".join(f"/nix/store/{name}\n{record}" for name in names))
            many = setup.with_closure(["--closure-info", root, "--store-root", root])
            yield {"paths": count, "lazystore_s": [become_ready(many)["seconds"] for _ in range(rounds)]}


# --- reads of blocks --------------------------------------------------------


def bench(setup, target, options, seconds):
    command = [setup.binary, "bench", *target, "--time", seconds, "--json", *options]
    out = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, timeout=120).stdout
    return json.loads(out)


class BlockServers:
    """The peers with vhost-user-blk, running at the same time, and the ranges to read."""

    def __init__(self, setup):
        self.setup, self.servers = setup, {}
        self.ranges = {"lazystore": self.lazystore_ranges(), "qemu-storage-daemon": self.image_ranges()}
        try:
            for name in self.ranges:
                peer = PEERS[name](setup)
                self.servers[name] = (peer, peer.start())
        except BaseException:
            self.stop()
            raise

    def lazystore_ranges(self):
        """Two lists of ranges of file data: all, and a random selection of HOT_BYTES."""
        setup = self.setup
        every, hot = setup.work / "ranges", setup.work / "ranges-hot"
        command = [setup.binary, "ranges", *setup.closure]
        every.write_bytes(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        lines = every.read_text().splitlines()
        random.Random(1).shuffle(lines)
        kept, total = [], 0
        while lines and total < HOT_BYTES:
            start, length = map(int, lines.pop().split())
            length = min(length, HOT_BYTES - total)
            kept.append(f"{start} {length}\n")
            total += length
        hot.write_text("".join(kept))
        return {"hot": hot, "every": every}

    def image_ranges(self):
        size = self.setup.image.stat().st_size
        files = {"hot": min(size, HOT_BYTES), "every": size}
        for name, length in files.items():
            (self.setup.work / f"image-ranges-{name}").write_text(f"0 {length // (1 << 20) << 20}\n")
        return {name: self.setup.work / f"image-ranges-{name}" for name in files}

    def round(self, seconds):
        """One measurement for each server and case."""
        found = {name: {} for name in self.servers}
        for case, options in BLOCK_CASES.items():
            for name in self.servers:
                found[name][case] = self.measure(name, "hot", [*options, "--touch"], seconds)
        for name in self.servers:
            found[name]["4k-qd32-every"] = self.measure(name, "every", BLOCK_CASES["4k-qd32"], seconds)
        found["pread"] = {"4k-qd1": bench(self.setup, ["--pread", self.setup.image], [], seconds)}
        return found

    def measure(self, name, ranges, options, seconds):
        peer, server = self.servers[name]
        target = ["--socket", peer.block_socket(), "--ranges", self.ranges[name][ranges],
                  "--cpu-of", server.process.pid]
        return bench(self.setup, target, options, seconds)

    def stop(self):
        for _, server in self.servers.values():
            server.stop()


# --- a guest ----------------------------------------------------------------


def boot(setup, kit, name, params, timeout_s):
    """One boot with a peer: times of the server's start, the mount and the jobs, CPU time and memory."""
    peer = PEERS[name](setup)
    begin = time.monotonic()
    server = peer.start()
    started = time.monotonic() - begin
    try:
        sample = (lambda _: server.sample()) if server else None
        seen = guest.run(kit, guest.Boot(peer.options(), {**peer.params, **params}, timeout_s=timeout_s, on_line=sample))
    finally:
        if server:
            server.stop()
    (setup.raw / f"{name.replace(' ', '-')}-{time.time():.0f}.log").write_text(seen.console)
    return {"started_s": started, "ready_s": server.ready_s if server else 0.0, "mounted_s": seen.named("mounted")[0][0],
            "ended_s": seen.named("done")[0][0], "server_cpu_s": server.cpu_s if server else 0.0,
            "server_peak_kib": server.peak_kib if server else 0, "qemu_cpu_s": seen.qemu_cpu_s, "jobs": guest.jobs(seen)}


def machine():
    """Describes the machine of the measurement."""
    cpus = pathlib.Path("/proc/cpuinfo").read_text()
    model = next((line.split(":", 1)[1].strip() for line in cpus.splitlines() if line.startswith("model name")), "cpu")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"cpu": model, "cores": os.cpu_count(), "memory_gb": round(memory / 1e9), "kernel": os.uname().release,
            "load": os.getloadavg()[0], "hard_limit_of_files": resource.getrlimit(resource.RLIMIT_NOFILE)[1]}
