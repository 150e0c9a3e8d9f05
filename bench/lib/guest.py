"""The measured guest: its initrd, QEMU's command line, one boot.

Kernel and busybox are those of scripts/lib/guest.sh; bench/guest/init replaces the init of the tests.
"""

import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
GUEST = ROOT / "bench/guest"
MODULES = ["fuse", "virtiofs"]
FIND = pathlib.Path("/usr/bin/find")
# lazystore's default. The guest finds the disk by it, because mkfs.erofs 1.5 cannot set a label.
DISK_UUID = "eb176051-bd15-49b7-9e6b-462e0b467019"


@dataclasses.dataclass
class Kit:
    """The files that every boot needs."""

    kernel: str
    initrd: str
    accel: str


def prepare(work, files):
    """Makes a kit whose guest has `files` (name to text) in /bench."""
    script = (". scripts/lib/common.sh; . scripts/lib/guest.sh; need \"${VM_TOOLS[@]}\"; prepare_guest; choose_accel;"
              " printf '%s\\n' \"$KERNEL\" \"$INITRD\" \"$ACCEL\"")
    out = subprocess.run(["bash", "-euc", script], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    kernel, initrd, accel = out.splitlines()[-3:]
    tree = pathlib.Path(tempfile.mkdtemp(dir=work))
    fill(tree, initrd, kernel, files)
    ours = work / "initrd"
    with open(ours, "wb") as file:
        subprocess.run("find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0", shell=True, cwd=tree, check=True,
                       stdout=file)
    shutil.rmtree(tree)
    return Kit(kernel, str(ours), accel)


def fill(tree, initrd, kernel, files):
    """Unpacks the tests' initrd, and adds our init, virtiofs, and a find without needless stat calls (unlike busybox's)."""
    subprocess.run(["cpio", "--quiet", "-id", "--no-absolute-filenames"], cwd=tree, check=True,
                   stdin=open(initrd, "rb"))
    shutil.copy(GUEST / "init", tree / "init")
    add_modules(tree, pathlib.Path(kernel).parent.parent)
    bench = tree / "bench"
    bench.mkdir()
    for name in ("finish", "finish.service", "kinds.awk"):
        shutil.copy(GUEST / name, bench / name)
    shutil.copy(FIND, bench / "find")
    linked = subprocess.run(["ldd", FIND], check=True, stdout=subprocess.PIPE, text=True).stdout
    for library in re.findall(r"(/\S+) \(0x", linked):
        (tree / library[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, tree / library[1:])
    for name, text in files.items():
        (bench / name).write_text(text)


def add_modules(tree, base):
    modules = next(path for top in ("lib", "usr/lib") for path in base.glob(f"{top}/modules/*"))
    with open(tree / "lib/modules", "a") as order:
        for name in MODULES:
            for file in modules.rglob(f"{name}.ko*"):
                text = file.read_bytes()
                if file.suffix == ".xz":
                    text = subprocess.run(["xz", "-dc", file], check=True, stdout=subprocess.PIPE).stdout
                (tree / "lib" / f"{name}.ko").write_bytes(text)
                order.write(f"{name}.ko\n")


@dataclasses.dataclass
class Boot:
    """The parameters of a boot."""

    store: list  # QEMU's options for the store
    params: dict  # bench.KEY=VALUE on the kernel's command line
    smp: int = 1
    memory: str = "1G"
    timeout_s: float = 600
    on_line: object = None  # called with the name of every line of results


def command(kit, boot):
    params = " ".join(f"bench.{key}={value}" for key, value in boot.params.items())
    cpu = "host" if kit.accel.startswith("kvm") else "max"
    # mitigations=off and a quiet console save CPU time of the emulator that is not part of the measurement.
    kernel_line = f"console=ttyS0 quiet panic=-1 mitigations=off no_timer_check {params}"
    return ["qemu-system-x86_64", "-accel", kit.accel, "-cpu", cpu, "-smp", str(boot.smp), "-m", boot.memory,
            "-object", f"memory-backend-memfd,id=mem,size={boot.memory},share=on", "-M", "q35,memory-backend=mem",
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
            "-kernel", kit.kernel, "-initrd", kit.initrd, "-append", kernel_line, *boot.store]


@dataclasses.dataclass
class Seen:
    """The results of a boot."""

    lines: list  # (seconds since QEMU's exec, name, {key: value})
    qemu_cpu_s: float
    console: str

    def named(self, name):
        return [(at, values) for at, found, values in self.lines if found == name]


def run(kit, boot):
    """Boots, and returns when the guest has ended. An emulated kernel that gets too little CPU time may fail its check of the
    timer, so a guest that prints no result is started once more."""
    seen = run_once(kit, boot)
    if not seen.lines:
        seen = run_once(kit, boot)
    if not seen.named("done"):
        raise RuntimeError("the guest did not complete its work:\n" + "\n".join(seen.console.splitlines()[-30:]))
    return seen


def run_once(kit, boot):
    begin = time.monotonic()
    process = subprocess.Popen(command(kit, boot), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    killer = threading.Timer(boot.timeout_s, process.kill)
    killer.start()
    lines, console = [], []
    try:
        for raw in process.stdout:
            console.append(raw.decode(errors="replace").rstrip())
            note_line(console[-1], time.monotonic() - begin, lines, boot)
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        killer.cancel()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Seen(lines, usage.ru_utime + usage.ru_stime, "\n".join(console))


def note_line(text, at_s, lines, boot):
    """Adds a line to `lines` if it contains a result."""
    if found := re.search(r"bench: (\S+)(.*)", text):
        values = dict(part.split("=", 1) for part in found[2].split() if "=" in part)
        lines.append((at_s, found[1], values))
        if boot.on_line:
            boot.on_line(found[1])


def jobs(seen):
    """For each job: seconds of the guest's clock, requests, merges, bytes, seconds in I/O, exit status."""
    result = {}
    for _, values in seen.named("job"):
        result[values["name"]] = {
            "seconds": float(values["end"]) - float(values["begin"]), "status": int(values["status"]),
            **stat_difference(values["before"], values["after"])}
    for _, values in seen.named("kind"):
        name = f"{values['kind']}_of_disk"
        numbers = {key: int(values[key]) for key in ("requests", "bytes", "single")}
        result.setdefault(values["job"], {})[name] = numbers
    return result


def stat_difference(before, after):
    """Differences of /sys/block/DISK/stat: reads, merges, sectors, io_ticks. Empty if the store is not a disk."""
    if not before:
        return {}
    first, last = ([int(field) for field in text.strip(",").split(",")] for text in (before, after))
    reads, merges, sectors = (b - a for a, b in zip(first[:3], last[:3]))
    return {"requests": reads, "merges": merges, "bytes": sectors * 512, "io_s": (last[9] - first[9]) / 1000}
