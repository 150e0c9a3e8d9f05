"""The Python part of bench/closure: chooses packages, unpacks them, and computes NAR hashes.

missing TABLE   prints the planned packages that are not in the cache
build TABLE     makes the store and closure-info in --dir
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import stat
import subprocess
from dataclasses import asdict, dataclass
from multiprocessing import Pool
from pathlib import Path

NIX32 = "0123456789abcdfghijklmnpqrsvwxyz"
FILLER = "nixos-options-doc"
# Shares of the target that packages may take. The filler takes the rest, which depends on the current versions of the packages.
INODE_SHARE, BYTE_SHARE = 0.98, 0.998
# Absolute symlink targets that stay as they are.
FOREIGN_TARGETS = ("/dev/", "/proc/", "/run/", "/var/", "/nix/")


@dataclass
class Target:
    paths: int
    inodes: int
    bytes: int


@dataclass
class Package:
    name: str
    inodes: int
    bytes: int


@dataclass
class Record:
    """The properties of a finished store path."""

    base: str
    nar_hash: str
    nar_size: int
    inodes: int
    dirs: int
    bytes: int


# ---- the plan: which packages, and which of them more than once


def read_table(table, debs):
    unavailable = set(read_lines(debs / "unavailable"))
    rows = (line.split() for line in read_lines(table) if line and not line.startswith("#"))
    packages = [Package(newest(name, debs), int(inodes), int(size)) for name, inodes, size in rows]
    return [package for package in packages if package.name not in unavailable]


def read_lines(file):
    return file.read_text().splitlines() if file.exists() else []


def newest(pattern, debs):
    """Replaces the `#` in a name by the highest number among the cached packages, or among all that apt lists."""
    if "#" not in pattern:
        return pattern
    regex = re.compile(re.escape(pattern).replace(r"\#", "#").replace("#", r"(\d+)"))
    cached = [deb.name.split("_")[0] for deb in debs.glob("*.deb")]
    for names in (cached, command("apt-cache", "pkgnames", pattern.split("#")[0]).split()):
        found = [match for name in names if (match := regex.fullmatch(name))]
        if found:
            return max(found, key=lambda match: int(match[1]))[0]
    return pattern


def plan(packages, target):
    """Returns (package name, copy number) for all paths except the filler."""
    left = Target(target.paths - 1, int(target.inodes * INODE_SHARE), int(target.bytes * BYTE_SHARE))
    chosen = [package for package in interleave(packages) if take(package, left, target)]
    small = [p for p in chosen if p.inodes <= 60 and p.bytes <= target.bytes / target.paths / 4]
    jobs = [(package.name, 1) for package in chosen]
    jobs += copies(small, left, target)
    if left.paths:
        raise SystemExit(f"closure: {left.paths} paths too few: packages are missing, or the target is too tight")
    return jobs


def interleave(packages):
    """Alternates between the package with the most inodes and the one with the most bytes, so that neither runs out first."""
    by_inodes = sorted(packages, key=lambda package: -package.inodes)
    by_bytes = sorted(packages, key=lambda package: -package.bytes)
    pairs = (package for pair in zip(by_inodes, by_bytes) for package in pair)
    return {package.name: package for package in pairs}.values()


def copies(small, left, target):
    jobs = []
    number = 2
    while left.paths and small:
        small = [package for package in small if fits(package, left, target)]
        jobs += [(package.name, number) for package in small if take(package, left, target)]
        number += 1
    return jobs


def take(package, left, target):
    if not fits(package, left, target):
        return False
    left.paths -= 1
    left.inodes -= package.inodes
    left.bytes -= package.bytes
    return True


def fits(package, left, target):
    """Whether enough is left for small packages in all further paths, and the package is a small part of the whole."""
    others = left.paths - 1
    return (
        others >= 0
        and package.inodes <= min(target.inodes / 10, left.inodes - 16 * others)
        and package.bytes <= min(target.bytes / 12, left.bytes - target.bytes / target.paths / 50 * others)
    )


def deb_of(name, debs):
    return next(iter(sorted(debs.glob(f"{name}_*.deb"))), None)


# ---- Nix's encodings


def nix32(digest):
    bits = int.from_bytes(digest, "little")
    length = (len(digest) * 8 + 4) // 5
    return "".join(NIX32[bits >> 5 * i & 31] for i in reversed(range(length)))


def store_name(name, version, copy):
    """Name of a store path. Each copy has its own, as a second build of the same package would."""
    digest = hashlib.sha256(f"{name} {version} {copy}".encode()).digest()[:20]
    label = f"{name}-{version.split(':')[-1]}" + (f"-{copy}" if copy > 1 else "")
    return f"{nix32(digest)}-{re.sub(r'[^0-9a-zA-Z+._?=-]', '-', label)}"


class Nar:
    """Canonicalises a tree and hashes its NAR in the same walk."""

    def __init__(self, root):
        self.root = root
        self.hash = hashlib.sha256()
        self.size = self.inodes = self.dirs = self.bytes = 0

    def record(self):
        self.put(b"nix-archive-1")
        self.node(os.fsencode(self.root))
        return Record(self.root.name, nix32(self.hash.digest()), self.size, self.inodes, self.dirs, self.bytes)

    def raw(self, data):
        self.hash.update(data)
        self.size += len(data)

    def put(self, *strings):
        for string in strings:
            self.raw(len(string).to_bytes(8, "little") + string + bytes(-len(string) % 8))

    def node(self, path):
        mode = os.lstat(path).st_mode
        self.inodes += 1
        self.put(b"(", b"type")
        if stat.S_ISDIR(mode):
            self.directory(path)
        elif stat.S_ISLNK(mode):
            self.symlink(path)
        else:
            self.regular(path, mode)
        os.utime(path, (1, 1), follow_symlinks=False)
        self.put(b")")

    def directory(self, path):
        self.dirs += 1
        self.put(b"directory")
        for name in sorted(os.listdir(path)):
            self.put(b"entry", b"(", b"name", name, b"node")
            self.node(path + b"/" + name)
            self.put(b")")
        os.chmod(path, 0o555)

    def symlink(self, path):
        target = self.redirected(path, os.readlink(path))
        self.put(b"symlink", b"target", target)

    def redirected(self, path, target):
        """Redirects a symlink to / or /usr into the store path. Returns the target."""
        if not target.startswith(b"/") or target.startswith(tuple(map(str.encode, FOREIGN_TARGETS))):
            return target
        target = os.fsencode(f"/nix/store/{self.root.name}/") + re.sub(rb"^/(usr/)?", b"", target)
        os.unlink(path)
        os.symlink(target, path)
        return target

    def regular(self, path, mode):
        executable = bool(mode & 0o111)
        os.chmod(path, 0o555 if executable else 0o444)
        self.put(b"regular", *([b"executable", b""] if executable else []), b"contents")
        with open(path, "rb", buffering=0) as file:
            length = os.fstat(file.fileno()).st_size
            self.bytes += length
            self.raw(length.to_bytes(8, "little"))
            while block := file.read(1 << 20):
                self.raw(block)
            self.raw(bytes(-length % 8))


# ---- making store paths


def command(*argv):
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout


def unpack(deb, path):
    """Unpacks a package. usr/* moves up one level, because a store path has no usr."""
    lift = r"--transform=s,^\./usr\(/\|$\),./,rh"
    tar = ["tar", "-x", "--no-same-owner", "--delay-directory-restore", lift, "-C", str(path)]
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as source:
        subprocess.run(tar, stdin=source.stdout, check=True)
    if source.returncode:
        raise RuntimeError(f"cannot read {deb}")


def make(directory, base, fill):
    """Makes one store path with fill(path), unless it exists; returns its record."""
    record_file = directory / ".cache/paths" / base
    if record_file.exists():
        return Record(**json.loads(record_file.read_text()))
    path = directory / "nix/store" / base
    remove(path)
    path.mkdir()
    fill(path)
    record = Nar(path).record()
    record_file.write_text(json.dumps(asdict(record)))
    return record


def remove(path):
    if path.exists():
        subprocess.run(["chmod", "-R", "u+w", str(path)], check=True)
        shutil.rmtree(path)


def make_package(job):
    directory, deb, base = job
    return make(directory, base, lambda path: unpack(deb, path))


def make_filler(directory, inodes, size):
    """Makes a manual of small text files with exactly the given numbers of inodes and bytes."""
    if inodes < 1 or size < 0:
        raise SystemExit(f"closure: the packages leave {inodes} inodes and {size} bytes to fill")
    base = store_name(FILLER, f"{inodes}.{size}", 1)
    return make(directory, base, lambda path: write_manual(path, inodes - 1, size))


def write_manual(path, nodes, size):
    files = manual_nodes(path, nodes)
    for (file, length), seed in zip(manual_sizes(files, size), range(len(files))):
        file.write_bytes(text(seed, length))


def manual_nodes(path, nodes):
    """Makes directories, 40 files to a chapter; returns the files to write."""
    files = []
    for name in ("share", "doc", "nixos")[: max(0, nodes - 1)]:
        path = path / name
        path.mkdir()
        nodes -= 1
    chapter = path
    for i in range(nodes):
        if i % 41 == 0 and i < nodes - 1:
            chapter = path / f"chapter-{i // 41:04}"
            chapter.mkdir()
        else:
            files.append(chapter / f"option-{i:06}.txt")
    return files


def manual_sizes(files, size):
    """Most files have a few hundred bytes to some KB; an index file takes the remaining bytes."""
    rng = random.Random(1)
    weights = [rng.lognormvariate(0, 1) for _ in files[1:]]
    scale = min(size, 6000 * len(weights)) / max(1, sum(weights))
    lengths = [int(weight * scale) for weight in weights]
    return list(zip(files, [size - sum(lengths), *lengths]))


def text(seed, length):
    rng = random.Random(seed)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(400)]
    lines = (" ".join(rng.choices(words, k=12)) for _ in range(length // 36 + 1))
    return "\n".join(lines).encode()[:length].ljust(length, b"\n")


# ---- the whole closure


def build(args, target):
    jobs, depends = package_jobs(args, plan(read_table(args.table, args.debs), target))
    for part in ("nix/store", "closure-info", ".cache/paths"):
        (args.dir / part).mkdir(parents=True, exist_ok=True)
    with Pool() as pool:
        records = pool.map(make_package, by_cost(jobs), chunksize=1)
    inodes, size = (getattr(target, of) - sum(getattr(r, of) for r in records) for of in ("inodes", "bytes"))
    records.append(make_filler(args.dir, inodes, size))
    remove_other_paths(args.dir, {record.base for record in records})
    write_info(args.dir / "closure-info", records, depends)
    (args.dir / ".cache/summary").write_text(summary(records))


def package_jobs(args, planned):
    """Returns the arguments of `make_package` for each path, and each path's references (names of store paths)."""
    jobs, first, depends = [], {}, {}
    for name, copy in planned:
        deb = deb_of(name, args.debs)
        version = command("dpkg-deb", "-f", str(deb), "Version")
        base = store_name(name, version.strip(), copy)
        first.setdefault(name, base)
        depends[base] = deb_depends(deb)
        jobs.append((args.dir, deb, base))
    references = {base: sorted(first[name] for name in names & first.keys()) for base, names in depends.items()}
    return jobs, references


def deb_depends(deb):
    fields = command("dpkg-deb", "-f", str(deb), "Depends")
    return set(re.findall(r"(?:^|[,|]\s*)([a-z0-9][a-z0-9+.-]+)", fields))


def by_cost(jobs):
    return sorted(jobs, key=lambda job: -job[1].stat().st_size)


def remove_other_paths(directory, wanted):
    """Removes the paths of an earlier plan."""
    for place in (directory / "nix/store", directory / ".cache/paths"):
        for path in place.iterdir():
            if path.name not in wanted:
                discard(path)


def discard(path):
    if path.is_dir():
        remove(path)
    else:
        path.unlink()


def write_info(info, records, references):
    paths, registration = [], []
    for record in records:
        path = f"/nix/store/{record.base}"
        needs = [f"/nix/store/{base}" for base in references.get(record.base, [])]
        paths.append(path)
        registration += [path, f"sha256:{record.nar_hash}", record.nar_size, "", len(needs), *needs]
    (info / "store-paths").write_text("".join(f"{path}\n" for path in paths))
    (info / "registration").write_text("".join(f"{line}\n" for line in registration))


def summary(records):
    def spread(values):
        values = sorted(values)
        return " ".join(f"p{p}={values[(len(values) - 1) * p // 100]}" for p in (5, 25, 50, 75, 90, 99, 100))

    total = {of: sum(getattr(record, of) for record in records) for of in ("inodes", "dirs", "bytes", "nar_size")}
    return (
        f"{len(records)} paths, {total['inodes']} inodes ({total['dirs']} directories), "
        f"{total['bytes']} bytes, {total['nar_size']} as NARs\n"
        f"inodes a path:      {spread(record.inodes for record in records)}\n"
        f"directories a path: {spread(record.dirs for record in records)}\n"
        f"bytes a path:       {spread(record.bytes for record in records)}\n"
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=("missing", "build"))
    parser.add_argument("table", type=Path)
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--debs", type=Path, required=True)
    for number in ("--paths", "--inodes", "--bytes"):
        parser.add_argument(number, type=int, required=True)
    args = parser.parse_args()
    target = Target(args.paths, args.inodes, args.bytes)
    if args.action == "build":
        return build(args, target)
    names = dict.fromkeys(name for name, _ in plan(read_table(args.table, args.debs), target))
    print(*(name for name in names if not deb_of(name, args.debs)), sep="\n", end="")


if __name__ == "__main__":
    main()
