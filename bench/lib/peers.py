"""The peers: each starts a server for the store and returns QEMU's options to attach it."""

import os
import pathlib
import signal
import subprocess
import time

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Names of children of a lazystore server that serve no VM.
HELPERS = ("planner", "jail-builder")


class Server:
    """A server with its children: the time until it was ready, and the CPU time and memory that it has used since."""

    def __init__(self, command, ready):
        begin = time.monotonic()
        self.process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL)
        try:
            ready(self.process)
        except BaseException:
            self.stop()
            raise
        self.ready_s = time.monotonic() - begin
        self.cpu_s, self.peak_kib = 0.0, 0
        self.sample()

    def sample(self):
        """Must be called while the guest runs, because its worker exits soon after it."""
        pids = tree(self.process.pid)
        self.cpu_s = max(self.cpu_s, tree_cpu_s(self))
        self.peak_kib = max(self.peak_kib, sum(peak_kib(pid) for pid in pids))

    def written_bytes(self):
        return sum(field(pid, "io", "write_bytes:") for pid in tree(self.process.pid))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def tree(pid):
    """A process and its descendants."""
    found = [pid]
    for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            for child in task.read_text().split():
                found += tree(int(child))
        except OSError:
            pass
    return found


def name_of(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def planner(server):
    """The child of a lazystore server that plans for all workers; None if it does not run."""
    return next((pid for pid in tree(server.process.pid)[1:] if name_of(pid) == "planner"), None)


def workers(server):
    """The children of a lazystore server that serve a client each."""
    return [pid for pid in tree(server.process.pid)[1:] if name_of(pid) not in HELPERS]


def cpu_s(pid):
    """The CPU time of a process, including children that it has waited for."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(value) for value in fields[11:15]) / TICKS_PER_S


def tree_cpu_s(server):
    """The CPU time of a server with its children."""
    return sum(cpu_s(pid) for pid in tree(server.process.pid))


def peak_kib(pid):
    return field(pid, "status", "VmHWM:")


def private_kib(pid):
    return sum(field(pid, "smaps_rollup", f"Private_{kind}:") for kind in ("Clean", "Dirty"))


def field(pid, file, name):
    """A number in /proc/PID/FILE; 0 if the process has ended."""
    try:
        for line in pathlib.Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def first_line(process):
    line = process.stdout.readline()
    if not line.startswith(b"ready "):
        raise RuntimeError(f"{process.args[0]} did not become ready")


def listening(socket):
    """Waits until the socket exists, because a client cannot connect earlier."""
    def wait(process):
        deadline = time.monotonic() + 20
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{process.args[0]} did not open {socket}")
            time.sleep(0.001)
    return wait


class Peer:
    """One way to give a guest the store."""

    name = ""
    params = {"type": "erofs"}

    def __init__(self, setup):
        self.setup = setup
        self.socket = setup.work / f"{self.name.replace(' ', '-')}.sock"

    def start(self):
        """Starts the server. Returns None if QEMU itself reads the image."""
        return None

    def options(self):
        """QEMU's options for the store."""
        raise NotImplementedError

    def block_socket(self):
        """The vhost-user-blk socket, if the peer has one."""
        return None

    def vhost_user(self, device):
        return ["-chardev", f"socket,id=store,path={self.socket}", "-device", f"{device},chardev=store"]


class Lazystore(Peer):
    name = "lazystore"

    def start(self):
        return Server([self.setup.binary, "serve", *self.setup.closure, "--vhost-user", self.socket,
                       *self.setup.serve_options], first_line)

    def options(self):
        return self.vhost_user("vhost-user-blk-pci")

    def block_socket(self):
        return self.socket


class LazystoreFuse(Peer):
    name = "lazystore as a file"

    def start(self):
        self.dir = self.setup.work / "fuse"
        self.dir.mkdir(exist_ok=True)
        return Server([self.setup.binary, "serve", *self.setup.closure, "--fuse", self.dir], first_line)

    def options(self):
        return drive(self.dir / "nix-store.img")


class VirtioBlk(Peer):
    name = "virtio-blk"

    def options(self):
        return drive(self.setup.image)


class QemuStorageDaemon(Peer):
    name = "qemu-storage-daemon"

    def start(self):
        self.socket.unlink(missing_ok=True)
        blockdev = f"driver=file,node-name=image,filename={self.setup.image},read-only=on"
        export = f"type=vhost-user-blk,id=e,node-name=image,addr.type=unix,addr.path={self.socket},num-queues=1"
        return Server(["qemu-storage-daemon", "--blockdev", blockdev, "--export", export], listening(self.socket))

    def options(self):
        return self.vhost_user("vhost-user-blk-pci")

    def block_socket(self):
        return self.socket


class Virtiofsd(Peer):
    name = "virtiofsd"
    params = {"type": "virtiofs"}

    def start(self):
        self.socket.unlink(missing_ok=True)
        # With descriptors instead of file handles, every file that the guest has looked up counts towards the limit of open files.
        return Server([self.setup.virtiofsd, f"--socket-path={self.socket}", f"--shared-dir={self.setup.store_dir}",
                       "--inode-file-handles=prefer"], listening(self.socket))

    def options(self):
        return ["-chardev", f"socket,id=store,path={self.socket}",
                "-device", "vhost-user-fs-pci,chardev=store,tag=nix-store"]


def drive(file):
    return ["-drive", f"file={file},format=raw,if=none,id=store,read-only=on", "-device", "virtio-blk-pci,drive=store"]


PEERS = {peer.name: peer for peer in (Lazystore, LazystoreFuse, VirtioBlk, QemuStorageDaemon, Virtiofsd)}
