"""Guests that look into every path: the first VM of a server, a further VM of the same server, a host with cold caches.

Each measurement is one boot with one job of bench/guest/init:

stat        busybox find, which looks at every inode
glob        2,000 small files below DIR/*/share/doc, which are found and read
symlinks    the first look at a symlink that has 99,999 neighbours, on a disk of its own
"""

import contextlib
import pathlib
import re
import signal
import subprocess
import sys
import time

from . import guest, tools
from .memory import drop_caches
from .peers import Lazystore, PEERS, cpu_s, planner, private_kib, workers

sys.path.insert(0, str(guest.ROOT / "bench"))
import closure as stores  # noqa: E402

LINKS = 100_000
IMAGE = "virtio-blk"
OURS = Lazystore.name
WALK_CALLS = ("statx", "getdents64", "readlinkat")
# A planner that has not run for this long has nothing left to do.
QUIET_S = 1.0
PLAN_LIMIT_S = 300


# --- the disk of symlinks ---------------------------------------------------


def make_links(directory):
    """Makes a chroot store with a path of symlinks, as a system's manual pages are; returns the name of one of them."""
    for part in ("nix/store", "closure-info", ".cache/paths"):
        (directory / part).mkdir(parents=True)
    target = "/nix/store/" + stores.store_name("manual", "1", 1) + "/share/man/man3"

    def fill(path):
        for number in range(LINKS):
            (path / f"page-{number:06}.3.gz").symlink_to(f"{target}/page-{number:06}.3.gz")

    base = stores.store_name("links", "1", 1)
    stores.write_info(directory / "closure-info", [stores.make(directory, base, fill)], {})
    return f"{base}/page-{LINKS // 2:06}.3.gz"


def setup_of_links(setup, directory):
    changed = setup.with_closure(["--closure-info", directory / "closure-info", "--store-root", directory])
    changed.store_dir, changed.image = directory / "nix/store", directory / "image"
    return changed


# --- one boot ---------------------------------------------------------------


class WorkerMonitor:
    """Measures a server's worker while its VM runs one job: its CPU time during the job, and its private memory after it."""

    def __init__(self, server):
        self.server, self.cpu_s, self.figures = server, {}, {}

    def __call__(self, name):
        pids = workers(self.server) if self.server else []
        self.cpu_s[name] = sum(cpu_s(pid) for pid in pids)
        if pids and name == "job":
            self.figures = {"worker_cpu_s": self.cpu_s["job"] - self.cpu_s["mounted"],
                            "worker_private_kib": sum(private_kib(pid) for pid in pids)}


def boot(peer, server, kit, job, limit_s):
    """One boot with one job."""
    monitor = WorkerMonitor(server)
    seen = guest.run(kit, guest.Boot(peer.options(), {**peer.params, "jobs": job}, timeout_s=limit_s, on_line=monitor))
    (peer.setup.raw / f"{job}-{time.time():.0f}.log").write_text(seen.console)
    found = guest.jobs(seen)[job]
    if found["status"]:
        raise RuntimeError(f"the job {job} ended with status {found['status']}")
    return {**found, **monitor.figures}


@contextlib.contextmanager
def serving(setup, name):
    """A peer with a new server, which is stopped at the end."""
    peer = PEERS[name](setup)
    server = peer.start()
    try:
        yield peer, server
    finally:
        if server:
            server.stop()


# --- first and further VMs --------------------------------------------------


def wait_until_planned(server):
    """Waits until the planner has slept for a while. Its CPU time proves nothing, because it runs at the lowest priority."""
    last, since = None, time.monotonic()
    deadline = since + PLAN_LIMIT_S
    while time.monotonic() - since < QUIET_S:
        now = activity(planner(server))
        if now != last or "S" not in now:
            last, since = now, time.monotonic()
        if since > deadline:
            raise RuntimeError(f"the planner still runs after {PLAN_LIMIT_S} s")
        time.sleep(0.05)


def activity(pid):
    """State and context switches of a process: unchanged if it slept between two calls."""
    try:
        text = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ("S",)
    return tuple(re.findall(r"^(?:State|\w*voluntary_ctxt_switches):\s+(\w+)", text, re.MULTILINE))


def two_vms(setup, kit, job, limit_s):
    """The first VM of a new server, and the second, which starts when the planner is done."""
    with serving(setup, OURS) as (peer, server):
        for vm in ("first", "second"):
            yield {"peer": OURS, "job": job, "vm": vm, **boot(peer, server, kit, job, limit_s)}
            wait_until_planned(server)


def image_vm(setup, kit, job, limit_s):
    with serving(setup, IMAGE) as (peer, server):
        return {"peer": IMAGE, "job": job, "vm": "any", **boot(peer, server, kit, job, limit_s)}


# --- a cold host ------------------------------------------------------------


def with_plans(setup, directory):
    changed = setup.with_closure(setup.closure)
    changed.serve_options = [*setup.serve_options, "--plan-dir", directory]
    return changed


def keep_plans(setup, kit, limit_s):
    """Fills the directory of plans: a VM looks at every inode."""
    with serving(setup, OURS) as (peer, server):
        boot(peer, server, kit, "stat", limit_s)
        wait_until_planned(server)


def cold_vm(setup, name, kit, vm, limit_s):
    """The first VM of a new server on a host with cold caches."""
    drop_caches(kit, setup.binary)
    with serving(setup, name) as (peer, server):
        return {"peer": name, "job": "glob", "vm": vm, **boot(peer, server, kit, "glob", limit_s)}


# --- system calls -----------------------------------------------------------


def walk_calls_of_second_vm(setup, kit, job, limit_s):
    """Counts the system calls that walk a path, in the worker of a second VM, from its start. Not timed."""
    trace = setup.work / "trace"
    with serving(setup, OURS) as (peer, server):
        boot(peer, server, kit, job, limit_s)
        wait_until_planned(server)
        with traced(server.process.pid, trace):
            boot(peer, server, kit, job, limit_s)
    return count_calls(trace.read_text(), server.process.pid)


@contextlib.contextmanager
def traced(pid, trace):
    """Traces a process and the children that it starts meanwhile."""
    command = ["strace", "-f", "-o", trace, "-e", "trace=" + ",".join(WALK_CALLS), "-p", str(pid)]
    strace = subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE)
    # The first line reports that strace has attached, or why it cannot.
    if b"attached" not in (line := strace.stderr.readline()):
        strace.kill()
        strace.communicate()
        raise RuntimeError(f"strace cannot trace the server: {line.decode(errors='replace').strip()}")
    try:
        yield
    finally:
        strace.send_signal(signal.SIGINT)
        strace.communicate()


def count_calls(text, server_pid):
    """Number of calls by name, without those of the server process itself."""
    counts = dict.fromkeys(WALK_CALLS, 0)
    for pid, call in re.findall(r"^(\d+) +(\w+)\(", text, re.MULTILINE):
        if int(pid) != server_pid and call in counts:
            counts[call] += 1
    return counts


# --- all of it --------------------------------------------------------------


class Scans:
    """The disks, and one round of everything."""

    def __init__(self, setup, limit_s):
        self.setup, self.limit_s = setup, limit_s
        links = setup.work / "links"
        self.link = make_links(links)
        self.links = setup_of_links(setup, links)
        self.plans = setup.work / "plans"
        self.kept = with_plans(setup, self.plans)

    def guest_files(self, mount="/nix/store"):
        return {"link": f"{mount}/{self.link}\n"}

    def warm_round(self, kit):
        """First and second VM of a server for each job, and a VM with the image."""
        for job in ("stat", "glob", "symlinks"):
            setup = self.links if job == "symlinks" else self.setup
            yield from two_vms(setup, kit, job, self.limit_s)
            yield image_vm(setup, kit, job, self.limit_s)

    def keep_plans(self, kit):
        self.plans.mkdir()
        keep_plans(self.kept, kit, self.limit_s)

    def cold_round(self, kit):
        yield cold_vm(self.kept, OURS, kit, "cold, kept plans", self.limit_s)
        yield cold_vm(self.setup, OURS, kit, "cold", self.limit_s)
        yield cold_vm(self.setup, IMAGE, kit, "cold", self.limit_s)

    def walk_calls(self, kit):
        return walk_calls_of_second_vm(self.setup, kit, "stat", self.limit_s)


def install():
    tools.shell("need strace")
