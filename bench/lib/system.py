"""A Debian system in the layout of a Nix store: a path of symlinks, and a path for each package with the files they point to."""

import hashlib
import os
import pathlib
import shutil
import stat
import subprocess

from .binary_cache import DIGITS, registration, remove

NAME = "debian-system"
# Files that the boot makes, or that no service reads during it.
LEFT_OUT = {"boot", "dev", "proc", "sys", "run", "tmp", "var/cache", "var/lib/apt", "var/lib/dpkg", "initrd.img", "initrd.img.old",
            "vmlinuz", "vmlinuz.old", "usr/share/doc"}
# Copied, not linked, because services change these files or read them first of all.
COPIED = ("etc/", "var/", "root/")


def packages(tree):
    """Name and files of each package of `tree`."""
    admin = f"--admindir={tree}/var/lib/dpkg"
    listed = subprocess.run(["dpkg-query", admin, "-W", "-f", "${binary:Package}\\n"], check=True,
                            stdout=subprocess.PIPE, text=True).stdout
    for name in listed.split():
        lists = pathlib.Path(tree, "var/lib/dpkg/info", f"{name}.list").read_text().splitlines()
        yield name.split(":")[0], [file[1:] for file in lists if len(file) > 2]


def real(tree, file):
    """Resolves symlinks among the directories of `file`, such as Debian's /lib."""
    parent = os.path.realpath(tree / os.path.dirname(file))
    return pathlib.Path(parent, os.path.basename(file)).relative_to(os.path.realpath(tree))


def make(tree, store):
    """Adds the system and its packages to `store`. Returns the system's name and the registration of all."""
    owner, added = {}, []
    for package, files in packages(tree):
        regular = [real(tree, file) for file in files if is_regular(tree / file)]
        name = digits(package) + "-" + package
        for file in regular:
            copy(tree / file, store / name / file)
            owner[file] = name
        if regular:
            added.append(name)
    system = digits(NAME) + "-" + NAME
    if (store / system).exists():
        # Left by an earlier run.
        remove(store / system)
    references = fill(tree, store, store / system, owner)
    records = [registration(store, name, ()) for name in added] + [registration(store, system, references)]
    return system, "".join(records)


def digits(name):
    return "".join(DIGITS[byte % 32] for byte in hashlib.sha256(name.encode()).digest())


def is_regular(path):
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o555 if source.stat().st_mode & 0o111 else 0o444)


def fill(tree, store, system, owner):
    """Makes the path of symlinks. Returns the names of the paths that it refers to."""
    references = set()
    for top, dirs, files in os.walk(tree):
        here = pathlib.Path(top).relative_to(tree)
        dirs[:] = [name for name in dirs if str(here / name) not in LEFT_OUT]
        (system / here).mkdir(parents=True, exist_ok=True)
        links = [name for name in dirs if (tree / here / name).is_symlink()]
        for name in files + links:
            file, source = here / name, tree / here / name
            if str(file) in LEFT_OUT:
                continue
            if source.is_symlink():
                (system / file).symlink_to(os.readlink(source))
            elif source.is_file():
                package = owner.get(file)
                if package and not str(file).startswith(COPIED):
                    (system / file).symlink_to(f"/nix/store/{package}/{file}")
                    references.add(package)
                else:
                    copy(source, system / file)
    for name in ("dev", "proc", "sys", "run", "tmp", "nix/store"):
        (system / name).mkdir(parents=True, exist_ok=True)
    return references
