# Functions for all scripts: messages, the cache directory, installation of missing packages.
# shellcheck shell=bash
# shellcheck disable=SC2034  # used by the scripts that read this file

# Tools such as depmod and mkfs.erofs are in sbin, which a user's PATH may lack.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
CACHE=${LAZYSTORE_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/lazystore}

say() { printf '== %s\n' "$*" >&2; }
die() { printf '%s: error: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# Seconds since START (an $EPOCHREALTIME), with three decimals.
since() {
    local us=$(( ${EPOCHREALTIME/./} - ${1/./} ))
    printf '%d.%03d' $(( us / 1000000 )) $(( us / 1000 % 1000 ))
}

# cached COMMAND...: runs the command while no other script writes to the cache.
cached() {
    mkdir -p "$CACHE"
    ( flock 9; "$@" 9>&- ) 9>"$CACHE/lock"
}

# keep FILE: marks FILE as used, and removes files of the same kind (equal up to the first -) that were not used for a week.
# Several checkouts may share the cache, so a new file does not replace the others at once.
keep() {
    local name=${1##*/}
    touch "$1"
    find "$CACHE" -maxdepth 1 -name "${name%%-*}-*" -mtime +7 -exec rm -rf {} +
}

# --- packages ---------------------------------------------------------------

# PACKAGE:COMMAND, a package of Debian and a command or file of it. If that exists, the package counts as installed.
VM_TOOLS=(qemu-system-x86:qemu-system-x86_64 busybox-static:busybox cpio:cpio kmod:depmod)
STORE_TOOLS=(nix-bin:nix-store patchelf:patchelf)
TEST_TOOLS=(erofs-utils:mkfs.erofs fuse3:fusermount3 qemu-utils:qemu-io strace:strace systemd:systemd-socket-activate util-linux-extra:fincore fakeroot:fakeroot e2fsprogs:/sbin/mke2fs libnbd-bin:nbdinfo python3-libnbd:nbdsh nginx-light:/usr/sbin/nginx openssl:openssl chromium:chromium)
DEBIAN_TOOLS=(mmdebstrap:mmdebstrap systemd-container:systemd-nspawn libvirt-clients:virt-xml-validate libxml2-utils:xmllint)
STATIC_TOOLS=(musl-tools:musl-gcc)
BUILD_TOOLS=(gcc:cc libc6-dev:/usr/include/stdlib.h)

# is_installed COMMAND-OR-FILE. Only a static busybox runs in an initrd without libraries, and both packages name it busybox.
is_installed() {
    case $1 in
        /*) [[ -e $1 ]] ;;
        busybox) command -v busybox >/dev/null && ! ldd "$(command -v busybox)" >/dev/null 2>&1 ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

# need PACKAGE:COMMAND...: installs the packages whose command is missing. Tries twice if necessary, because apt may remove one
# package for another, such as a newer qemu-utils for qemu-system-x86.
need() {
    local missing round
    for round in 1 2; do
        find_missing "$@"
        (( ${#missing[@]} )) || return 0
        apt_install "${missing[@]}"
    done
    find_missing "$@"
    (( ! ${#missing[@]} )) || die "still missing after their installation: ${missing[*]}"
}

# Fills the caller's array `missing` with the packages to install.
find_missing() {
    local tool
    missing=()
    for tool; do
        is_installed "${tool#*:}" || missing+=("${tool%%:*}")
    done
}

apt_install() {
    local command=(apt-get install -y --no-install-recommends "$@")
    (( EUID == 0 )) || die "missing packages: $*; install them as root: ${command[*]}"
    command -v apt-get >/dev/null || die "missing (named as in Debian): $*"
    say "installing $*"
    apt_refresh
    quietly env DEBIAN_FRONTEND=noninteractive "${command[@]}" -qq
}

need_cargo() {
    need "${BUILD_TOOLS[@]}"
    command -v cargo >/dev/null || die 'cargo is missing: install Rust, see https://rustup.rs'
}

# need_target TARGET: installs the standard library of one of Rust's targets, if it is missing.
need_target() {
    [[ -d $(rustc --print target-libdir --target "$1") ]] || quietly rustup target add "$1"
}

# Refreshes apt's lists once, before the first download, because they may be older than the mirror.
apt_refresh() {
    [[ -z ${APT_IS_FRESH:-} ]] || return 0
    quietly apt-get update -qq
    export APT_IS_FRESH=1
}

# quietly COMMAND...: shows the command's output only if it fails. The command is not interactive.
quietly() {
    local log
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1 </dev/null; then
        cat "$log" >&2
        rm -f "$log"
        die "failed: $*"
    fi
    rm -f "$log"
}
