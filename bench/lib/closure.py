"""The work of a guest on a closure: the files that it reads and the programs that it starts."""

import hashlib
import os
import pathlib
import re
import subprocess

LIBRARY = re.compile(r"\.so[.\d]*$")
LIBRARIES_BYTES = 100_000_000
SMALL_FILES = 2000
SMALL_BYTES = range(1, 16385)
# Programs to try first, because a closure of Debian packages lacks the libraries of many programs.
PREFERRED_PROGRAMS = ["bash", "git", "python3.11", "perl", "curl", "ffmpeg", "ls"]
PROGRAMS_MAX = 5


def read_list(info):
    return [pathlib.PurePosixPath(line).name for line in (info / "store-paths").read_text().split()]


def files(store, names):
    """Every regular file: (path below the store, size in bytes)."""
    command = ["find", *(f"./{name}" for name in names), "-type", "f", "-printf", "%s %P\\t%H\\0"]
    listed = subprocess.run(command, cwd=store, check=True, stdout=subprocess.PIPE).stdout
    for line in os.fsdecode(listed).split("\0")[:-1]:
        size, rest = line.split(" ", 1)
        path, _, top = rest.rpartition("\t")
        yield f"{top[2:]}/{path}".rstrip("/"), int(size)


def by_hash(names):
    """A pseudo-random order that is the same everywhere and independent of any layout."""
    return sorted(names, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())


class Workload:
    """Lists for bench/guest/init, with the guest's names."""

    def __init__(self, info, store, mount="/nix/store"):
        self.store, self.mount = store, mount
        self.sizes = {name: size for name, size in files(store, read_list(info)) if "\n" not in name}
        self.small = by_hash(n for n, size in self.sizes.items() if size in SMALL_BYTES)[:SMALL_FILES]
        self.libs = self.choose_libraries()
        self.seq = max(self.sizes, key=self.sizes.get)
        self.programs = self.choose_programs()

    def choose_libraries(self):
        chosen, total = [], 0
        for name in by_hash(n for n in self.sizes if LIBRARY.search(n)):
            if total >= LIBRARIES_BYTES:
                break
            chosen.append(name)
            total += self.sizes[name]
        return chosen

    def choose_programs(self):
        """Lines `NAME COMMAND...` for programs whose libraries are in the closure; COMMAND starts with the closure's loader."""
        loader = next((n for n in self.sizes if n.endswith("/ld-linux-x86-64.so.2") and "-libc6-" in n), None)
        programs = by_hash(n for n in self.sizes if "/bin/" in n)
        programs.sort(key=lambda name: os.path.basename(name) not in PREFERRED_PROGRAMS)
        dirs = sorted({str(self.store / os.path.dirname(n)) for n in self.sizes if LIBRARY.search(n)})
        chosen = []
        for name in programs if loader else []:
            if len(chosen) < PROGRAMS_MAX and (path := self.library_path(loader, name, dirs)):
                option = "-version" if name.endswith("/ffmpeg") else "--version"
                chosen.append(f"{os.path.basename(name)} {self.mount}/{loader} --library-path {path}"
                              f" {self.mount}/{name} {option}")
        return chosen

    def library_path(self, loader, name, dirs):
        """The directories of a program's libraries in the guest, separated by colons; None if some are missing."""
        command = [self.store / loader, "--inhibit-cache", "--library-path", ":".join(dirs), "--list", self.store / name]
        listed = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        found = re.findall(r"=> (/\S+) \(", listed.stdout)
        inside = [library for library in found if library.startswith(f"{self.store}/")]
        if listed.returncode or "not found" in listed.stdout or len(inside) < max(3, len(found)):
            return None
        used = dict.fromkeys(os.path.dirname(library) for library in inside)
        return ":".join(f"{self.mount}/{os.path.relpath(path, self.store)}" for path in used)

    def guest_files(self):
        lists = {"small": self.small, "libs": self.libs}
        return {**{name: "".join(f"{self.mount}/{path}\0" for path in paths) for name, paths in lists.items()},
                "seq": f"{self.mount}/{self.seq}\n",
                "programs": "".join(line + "\n" for line in self.programs)}
