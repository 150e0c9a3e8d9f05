"""Guests that boot and read at the same time, from one lazystore or from a server each."""

import statistics
import threading
import time

from . import guest
from .peers import Lazystore, PEERS, private_kib, tree, tree_cpu_s

LIMIT_S = 900
# The same files for every guest: libraries, one after the other, then one large file.
JOBS = "libs,seq"
MEMORY = "384M"


class Servers:
    """The servers of all guests: one lazystore, or one server of another kind for each guest."""

    def __init__(self, setup, name, count):
        self.peers = [PEERS[name](setup) for _ in range(count)]
        self.running, self.private_kib = [], 0
        for index, peer in enumerate(self.peers):
            if name != Lazystore.name:
                peer.socket = setup.work / f"crowd-{index}.sock"
            if name != Lazystore.name or index == 0:
                self.start(peer)

    def start(self, peer):
        try:
            self.running.append(peer.start())
        except BaseException:
            self.stop()
            raise

    def cpu_s(self):
        return sum(map(tree_cpu_s, self.running))

    def sample(self):
        """Called when a guest has finished a job, so that all servers are sampled while their guests run."""
        pids = [pid for server in self.running for pid in tree(server.process.pid)]
        self.private_kib = max(self.private_kib, sum(map(private_kib, pids)))

    def stop(self):
        for server in self.running:
            server.stop()


class Guests:
    """Boots one guest per peer, each in a thread."""

    def __init__(self, kit, servers):
        self.kit, self.servers, self.seen, self.error = kit, servers, [], None
        self.lock = threading.Lock()

    def run(self):
        threads = [threading.Thread(target=self.boot, args=(peer,)) for peer in self.servers.peers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.error:
            raise self.error

    def boot(self, peer):
        boot = guest.Boot(peer.options(), {**peer.params, "jobs": JOBS}, memory=MEMORY, timeout_s=LIMIT_S,
                          on_line=self.on_line)
        try:
            seen = guest.run(self.kit, boot)
        except (RuntimeError, OSError) as error:
            self.error = error
            return
        with self.lock:
            self.seen.append(seen)

    def on_line(self, name):
        if name == "job":
            with self.lock:
                self.servers.sample()


def measure(setup, kit, name, count):
    """Seconds until the last guest has ended, the mean time of a guest in its jobs, and what the servers used."""
    servers = Servers(setup, name, count)
    try:
        guests = Guests(kit, servers)
        begin, cpu = time.monotonic(), servers.cpu_s()
        guests.run()
        seconds, cpu = time.monotonic() - begin, servers.cpu_s() - cpu
    finally:
        servers.stop()
    jobs = [guest.jobs(seen) for seen in guests.seen]
    failed = [name for one in jobs for name, job in one.items() if job["status"]]
    if failed:
        raise RuntimeError(f"jobs ended with an error: {', '.join(failed)}")
    return {"seconds": seconds, "jobs_s": statistics.mean(sum(job["seconds"] for job in one.values()) for one in jobs),
            "cpu_s": cpu, "private_mib": servers.private_kib / 1024}
