"""Holds files in memory, so that a comparison does not measure the host's disk; or drops them, to measure a cold host.

A kernel may drop cached pages at any time. On a kernel that reclaims pages not read for a minute (DAMON), a measurement of a
closure of some gigabytes would measure the disk.
"""

import ctypes
import mmap
import os
import pathlib
import subprocess

DROP_CACHES = pathlib.Path("/proc/sys/vm/drop_caches")
MAX_MAPS = pathlib.Path("/proc/sys/vm/max_map_count")
# Share of the available memory that files may take. The guests need some, and so does the image while it is written.
HELD_SHARE = 0.7


class Held:
    """Keeps files in memory until it is closed: maps and locks them, which needs root or RLIMIT_MEMLOCK."""

    def __init__(self):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.mmap.restype = ctypes.c_void_p
        self.libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        self.libc.mlock.argtypes = self.libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self.maps, self.max_maps = [], None

    def hold(self, files):
        """Reads files. Returns whether all of them are held."""
        sizes = [(file, size) for file in files if (size := os.stat(file).st_size)]
        if sum(size for _, size in sizes) <= HELD_SHARE * available_bytes():
            self.allow_maps(len(sizes))
            # A list, so that a failure does not keep the other files from being held.
            if all([self.hold_one(file, size) for file, size in sizes]):
                return True
        for file, _ in sizes:
            read(file)
        return False

    def hold_one(self, file, size):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            place = self.libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        finally:
            os.close(descriptor)
        if place in (None, ctypes.c_void_p(-1).value):
            return False
        self.maps.append((place, size))
        return self.libc.mlock(place, size) == 0

    def allow_maps(self, count):
        """Raises the limit of mappings per process (65,530 by default), if permitted."""
        limit = int(MAX_MAPS.read_text())
        needed = len(self.maps) + count + 10_000
        if needed > limit and os.access(MAX_MAPS, os.W_OK):
            MAX_MAPS.write_text(str(needed))
            self.max_maps = self.max_maps or limit

    def close(self):
        while self.maps:
            self.libc.munmap(*self.maps.pop())
        if self.max_maps:
            MAX_MAPS.write_text(str(self.max_maps))


def drop_caches(kit, binary):
    """Drops the host's caches, then reads the programs again, and the files that a guest boots from."""
    subprocess.run(["sync"], check=True)
    DROP_CACHES.write_text("3")
    subprocess.run(["qemu-system-x86_64", "--version"], check=True, stdout=subprocess.DEVNULL)
    for file in (kit.kernel, kit.initrd, binary):
        read(file)


def read(path):
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


def available_bytes():
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
