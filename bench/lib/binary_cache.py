"""Binary caches for bench/cache: written and signed by Nix, served by nginx with a configurable round-trip time."""

import hashlib
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import time

NIX_CONFIG = "sandbox = false\nbuild-users-group =\nextra-experimental-features = nix-command\n"
# Nix's base 32.
DIGITS = "0123456789abcdfghijklmnpqrsvwxyz"


def nix(*command, **options):
    return subprocess.run([str(part) for part in command], check=True, env={**os.environ, "NIX_CONFIG": NIX_CONFIG},
                          **options)


def load(root, registration):
    """Registers the paths below `root` in its Nix database."""
    nix("nix-store", "--store", root, "--load-db", stdin=open(registration, "rb"))


def write(root, out, compression):
    """Writes a whole chroot store as a signed cache with listings, unless it was written before. Returns the public key."""
    out.parent.mkdir(parents=True, exist_ok=True)
    secret, public = out.parent / f"{out.name}.key", out.parent / f"{out.name}.public"
    if not public.exists():
        nix("nix-store", "--generate-binary-cache-key", "bench-1", secret, public)
        query = f"compression={compression}&write-nar-listing=1&secret-key={secret}"
        nix("nix", "copy", "--all", "--store", root, "--to", f"file://{out}?{query}", stdout=subprocess.DEVNULL)
    return public.read_text()


def string(data):
    """Encodes a string as in a NAR."""
    return len(data).to_bytes(8, "little") + data + b"\0" * (-len(data) % 8)


def file_nar(content):
    words = [b"nix-archive-1", b"(", b"type", b"regular", b"contents", content, b")"]
    return b"".join(map(string, words))


def many_paths(root, count):
    """Makes a store of `count` paths of one small file each, where each refers to about eight others; returns the top path."""
    store = root / "nix/store"
    store.mkdir(parents=True)
    rng = random.Random(1)
    hashes = (hashlib.sha256(b"%d" % number).digest() for number in range(count))
    names = ["".join(DIGITS[byte % 32] for byte in digest) + f"-path{number}" for number, digest in enumerate(hashes)]
    with open(root / "registration", "w") as out:
        for number, name in enumerate(names):
            content = b"file %d" % number
            (store / name).write_bytes(content)
            (store / name).chmod(0o444)
            archive = file_nar(content)
            # A binary tree, so that every path is reachable from the first. References go only to later paths: no cycles.
            others = {2 * number + 1, 2 * number + 2, *(rng.randrange(number, count) for _ in range(6))}
            references = sorted(f"/nix/store/{names[other]}" for other in others if number < other < count)
            record = [f"/nix/store/{name}", hashlib.sha256(archive).hexdigest(), len(archive), "", len(references)]
            out.write("".join(f"{line}\n" for line in [*record, *references]))
    load(root, root / "registration")
    return f"/nix/store/{names[0]}"


def large_path(root, length):
    """Makes a store of one path, a directory with two files. The second has about `length` bytes that compress by half."""
    name = "".join(DIGITS[byte % 32] for byte in hashlib.sha256(b"large").digest()) + "-large"
    path = root / "nix/store" / name
    path.mkdir(parents=True)
    rng = random.Random(1)
    (path / "first").write_bytes(b"small")
    with open(path / "second", "wb") as out:
        for _ in range(0, length, 1 << 20):
            out.write(rng.randbytes(1 << 19) + bytes(1 << 19))
    (root / "registration").write_text(registration(root / "nix/store", name, ()))
    load(root, root / "registration")
    return f"/nix/store/{name}"


def registration(store, name, references):
    """Gives a path Nix's times and modes, and returns its record."""
    path = store / name
    for top, dirs, files in os.walk(path):
        for entry in files:
            file = os.path.join(top, entry)
            if not os.path.islink(file):
                os.chmod(file, 0o555 if os.stat(file).st_mode & 0o111 else 0o444)
        for entry in files + dirs:
            os.utime(os.path.join(top, entry), (1, 1), follow_symlinks=False)
        os.utime(top, (1, 1))
        os.chmod(top, 0o555)
    digest = nix("nix-hash", "--type", "sha256", path, stdout=subprocess.PIPE, text=True).stdout.strip()
    with subprocess.Popen(["nix-store", "--dump", path], stdout=subprocess.PIPE) as dump:
        size = sum(len(part) for part in iter(lambda: dump.stdout.read(1 << 20), b""))
    lines = [f"/nix/store/{name}", f"sha256:{digest}", size, "", len(references)]
    return "".join(f"{line}\n" for line in lines + [f"/nix/store/{other}" for other in sorted(references)])


def remove(root):
    """Removes a store, whose directories are read-only."""
    subprocess.run(["chmod", "-R", "u+w", root], check=True)
    shutil.rmtree(root)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(port):
    for _ in range(500):
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.02)
    raise RuntimeError(f"nothing listens on port {port}")


class Web:
    """Context manager: nginx serves a cache, optionally through a proxy that delays."""

    def __init__(self, cache, work, round_trip_ms=0):
        self.cache, self.work, self.round_trip_ms = cache, work, round_trip_ms

    def __enter__(self):
        self.work.mkdir(parents=True, exist_ok=True)
        self.log = self.work / "access.log"
        self.log.write_text("")
        port = free_port()
        at = self.work
        (at / "nginx.conf").write_text(
            f"daemon off; worker_processes 1; pid {at}/pid; error_log {at}/error.log; user root;\n"
            "events { worker_connections 4096; }\n"
            f"http {{ log_format bytes '$body_bytes_sent $uri'; access_log {at}/access.log bytes;\n"
            f"client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;\n"
            f"uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi; keepalive_requests 100000; sendfile on; tcp_nodelay on;\n"
            f"server {{ listen 127.0.0.1:{port} backlog=512; root {self.cache}; }} }}\n")
        self.processes = [subprocess.Popen(["nginx", "-c", at / "nginx.conf"])]
        try:
            wait_for(port)
            if self.round_trip_ms:
                port = self.start_proxy(port)
        except BaseException:
            self.__exit__()
            raise
        self.url = f"http://127.0.0.1:{port}"
        return self

    def start_proxy(self, port):
        """Starts a proxy in front of `port`; returns its own port."""
        proxy_port = free_port()
        command = [sys.executable, pathlib.Path(__file__).with_name("delay.py"), proxy_port, port, self.round_trip_ms]
        self.processes.append(subprocess.Popen([str(part) for part in command]))
        wait_for(proxy_port)
        return proxy_port

    def __exit__(self, *_):
        for process in self.processes:
            process.terminate()
            process.wait()

    def requests(self):
        """The requests that were answered so far: (bytes, path)."""
        lines = (line.split(" ", 1) for line in self.log.read_text().splitlines())
        return [(int(length), path) for length, path in lines]
