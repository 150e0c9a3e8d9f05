# The guest: Debian's cloud kernel, an initrd with busybox, and a test whether they boot on KVM.
# shellcheck shell=bash
# shellcheck disable=SC2034  # used by the scripts that read this file

# In the order in which init loads them; modprobe finds their dependencies.
GUEST_MODULES=(virtio_pci virtio_mmio virtio_blk crc32c_generic libcrc32c erofs overlay virtiofs virtio_pmem nd_pmem)

# --- kernel -----------------------------------------------------------------

# Sets KERNEL and INITRD, and exports them to the scripts that this one starts.
prepare_guest() {
    if [[ -z ${LAZYSTORE_TEST_KERNEL:-} || -z ${LAZYSTORE_TEST_INITRD:-} ]]; then
        [[ $(uname -m) == x86_64 ]] || die "the guest needs x86_64, this machine is $(uname -m)"
        cached get_kernel
        local modules
        modules=$(kernel_modules "$CACHE/kernel")
        LAZYSTORE_TEST_KERNEL=$CACHE/kernel/boot/vmlinuz-${modules##*/}
        LAZYSTORE_TEST_INITRD=$CACHE/initrd-$(initrd_name "${modules##*/}")
        cached build_initrd "$modules" "$LAZYSTORE_TEST_INITRD"
    fi
    export LAZYSTORE_TEST_KERNEL LAZYSTORE_TEST_INITRD
    KERNEL=$LAZYSTORE_TEST_KERNEL INITRD=$LAZYSTORE_TEST_INITRD
}

# kernel_modules DIR: prints the modules directory of the kernel unpacked in DIR; newer Debian has it below usr.
kernel_modules() {
    local dir
    for dir in "$1"{,/usr}/lib/modules/*; do
        [[ ! -d $dir ]] || printf '%s\n' "$dir"
    done
}

# Unpacks the kernel instead of installing it, so that the machine's own boot loader does not change.
get_kernel() {
    [[ ! -d $CACHE/kernel ]] || return 0
    apt_refresh
    local package modules tmp=$CACHE/kernel.tmp
    package=$(newest_kernel)
    [[ -n $package ]] || die 'apt lists no linux-image-*-cloud-amd64'
    say "downloading and unpacking $package (not installed)"
    rm -rf "$tmp" && mkdir -p "$tmp/root"
    download "$tmp" "$package"
    dpkg -x "$tmp"/*.deb "$tmp/root"
    modules=$(kernel_modules "$tmp/root")
    quietly depmod -b "${modules%/lib/modules/*}" "${modules##*/}"
    mv "$tmp/root" "$CACHE/kernel"
    rm -rf "$tmp"
}

# 6.1 is the oldest kernel that the tests use. If Debian no longer has it, use the newest.
newest_kernel() {
    local names
    names=$(apt-cache search --names-only '^linux-image-[0-9][^ ]*-cloud-amd64(-unsigned)?$' |
        cut -d' ' -f1 | grep -E -- '-[0-9]+\.[0-9]+(\.[0-9]+|\+)[^ ]*-cloud' | sort -V) || true
    { grep -F -- -6.1.0- <<<"$names" || cat <<<"$names"; } | tail -n 1
}

# download DIR PACKAGE...: the .deb files of packages; apt's own user cannot write to DIR, hence the option.
download() {
    local dir=$1; shift
    ( cd "$dir" && quietly apt-get -o APT::Sandbox::User=root -qq download "$@" )
}

# --- initrd -----------------------------------------------------------------

# The name contains a hash of the contents, so that no guest runs another checkout's init.
initrd_name() {
    { printf '%s\n' "$1"; cat "$ROOT"/tests/vm/{init,manifest} "${BASH_SOURCE[0]}"; } | sha256sum | cut -c1-12
}

# Not compressed, because an emulated CPU decompresses slowly.
build_initrd() {
    [[ ! -e $2 ]] || { keep "$2"; return; }
    local modules=$1 out=$2 tmp
    tmp=$(mktemp -d)
    mkdir -p "$tmp"/{bin,dev,proc,sys,out,mnt,nix/store,lib}
    cp "$(command -v busybox)" "$tmp/bin/busybox"
    cp "$ROOT"/tests/vm/{init,manifest} "$tmp/"
    chmod 755 "$tmp"/{init,manifest}
    copy_modules "$modules" "$tmp/lib"
    grep -qx erofs.ko "$tmp/lib/modules" || die "no erofs module in $modules"
    ( cd "$tmp" && find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0 ) >"$out.tmp"
    mv "$out.tmp" "$out"
    rm -rf "$tmp"
}

# copy_modules MODULES DIR: copies the .ko files, and writes their order to DIR/modules. Uses busybox's xz, because the machine may
# have none.
copy_modules() {
    local module file
    module_files "$1" | while read -r file; do
        module=$(basename "${file%.xz}")
        case $file in
            *.xz) busybox xz -dc "$file" ;;
            *) cat "$file" ;;
        esac >"$2/$module"
        printf '%s\n' "$module" >>"$2/modules"
    done
}

# Prints dependencies first, and each file once. Modules that are built into the kernel are not listed.
module_files() {
    local name base=${1%/lib/modules/*}
    for name in "${GUEST_MODULES[@]}"; do
        modprobe -C /dev/null -d "$base" -S "${1##*/}" --show-depends "$name" 2>/dev/null || true
    done | sed -n 's/^insmod \(.*[^ ]\) *$/\1/p' | awk '!seen[$0]++'
}

# --- accelerator ------------------------------------------------------------

# Sets ACCEL (QEMU's -accel) for this script and those it starts. A kernel may fail to boot on KVM even if /dev/kvm opens, so this
# boots one. The result is valid until the host reboots.
choose_accel() {
    local answer
    answer=$CACHE/accel-$(cat /proc/sys/kernel/random/boot_id)
    if [[ -z ${LAZYSTORE_ACCEL:-} ]]; then
        [[ -e $answer ]] || cached probe_kvm "$answer"
        LAZYSTORE_ACCEL=$(cat "$answer")
    fi
    export LAZYSTORE_ACCEL
    ACCEL=$LAZYSTORE_ACCEL
}

probe_kvm() {
    [[ ! -e $1 ]] || return 0
    local accel=tcg,thread=multi
    if [[ -r /dev/kvm && -w /dev/kvm ]]; then
        say 'trying KVM: a boot of at most 10 s'
        if trial_boot; then accel=kvm; else say 'no kernel boots on KVM here: emulating (TCG)'; fi
    fi
    rm -f "$CACHE"/accel-*
    printf '%s\n' "$accel" >"$1"
}

trial_boot() {
    timeout --kill-after=1 10 qemu-system-x86_64 -accel kvm -cpu host -M q35 -m 256M -nodefaults -no-user-config \
        -display none -no-reboot -serial stdio -kernel "$KERNEL" -initrd "$INITRD" \
        -append 'console=ttyS0 quiet panic=-1 lazystore.probe=1' </dev/null 2>/dev/null |
        grep -aq 'lazystore: probe ok'
}
