"""Installs what bench/compare needs on the machine; names of files and directories."""

import copy
import os
import pathlib
import re
import shutil
import subprocess
import sys

from . import guest

CACHE = pathlib.Path(os.environ.get("LAZYSTORE_CACHE") or
                     pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "lazystore")
VIRTIOFSD = CACHE / "virtiofsd"
VENV = CACHE / "venv"
# Versions that were tested.
VIRTIOFSD_VERSION = "^1"
MATPLOTLIB = "matplotlib>=3.8,<4"


def shell(script, *arguments):
    """Runs a script in bash, with the functions of scripts/lib/common.sh."""
    subprocess.run(["bash", "-euc", f". scripts/lib/common.sh; {script}", "bash", *arguments], cwd=guest.ROOT, check=True)


def install(peers):
    shell('need "${VM_TOOLS[@]}" erofs-utils:mkfs.erofs qemu-system-common:qemu-storage-daemon xz-utils:xz')
    if "virtiofsd" in peers and not (VIRTIOFSD / "bin/virtiofsd").exists():
        shell("need_cargo; need libcap-ng-dev:/usr/include/cap-ng.h libseccomp-dev:/usr/include/seccomp.h;"
              ' say "cargo install virtiofsd (not installed: kept in the cache)";'
              ' cargo install --quiet --locked virtiofsd --version "$1" --root "$2"', VIRTIOFSD_VERSION, VIRTIOFSD)
    python()


def python():
    """Returns a Python interpreter that has matplotlib."""
    found = VENV / "bin/python"
    if not found.exists():
        try:
            subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
            subprocess.run([found, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", MATPLOTLIB], check=True)
        except BaseException:
            # Otherwise the next run would use an interpreter without matplotlib.
            shutil.rmtree(VENV, ignore_errors=True)
            raise
    return found


def machine_name():
    """The CPU and the number of cores, without the name of the host."""
    cpus = pathlib.Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", cpus)
    words = re.findall(r"[A-Za-z0-9]+", model[1] if model else os.uname().machine)
    plain = [word for word in words if word not in ("R", "TM", "CPU", "Processor")][:3]
    return "-".join(plain).lower() + f"-{os.cpu_count()}cores"


class Setup:
    """Paths and options that all measurements share."""

    def __init__(self, args, work):
        self.work, self.binary = work, args.bin
        self.image = work / "image"
        self.root = ["--store-root", args.store_root] if str(args.store_root) != "/" else []
        self.store_dir = args.store_root / "nix/store"
        self.closure = ["--closure-info", args.closure_info, *self.root]
        self.serve_options = []
        self.virtiofsd = VIRTIOFSD / "bin/virtiofsd"
        self.raw = args.out / "raw"
        shutil.rmtree(self.raw, ignore_errors=True)
        self.raw.mkdir()

    def with_closure(self, closure):
        changed = copy.copy(self)
        changed.closure = closure
        return changed
