# A Debian root file system with systemd and a kernel: a machine without Nix, for containers and VMs.
# shellcheck shell=bash
# shellcheck disable=SC2034  # used by the scripts that read this file

DEBIAN_PACKAGES=systemd-sysv,dbus,udev,kmod,linux-image-cloud-amd64,initramfs-tools,zstd
OVERLAY_ROOT=$ROOT/docs/examples/overlay-root

# Sets DEBIAN, a directory. Its initrd mounts a root of EROFS, with an overlay over it (docs/examples.md).
prepare_debian() {
    if [[ -z ${LAZYSTORE_TEST_DEBIAN:-} ]]; then
        LAZYSTORE_TEST_DEBIAN=$CACHE/debian-$(cat "${BASH_SOURCE[0]}" "$OVERLAY_ROOT" | sha256sum | cut -c1-12)
        cached build_debian "$LAZYSTORE_TEST_DEBIAN"
    fi
    export LAZYSTORE_TEST_DEBIAN
    DEBIAN=$LAZYSTORE_TEST_DEBIAN
}

build_debian() {
    [[ ! -d $1 ]] || { keep "$1"; return; }
    local suite mirror
    apt_refresh
    read -r mirror suite < <(debian_mirror)
    [[ -n ${suite:-} ]] || die "apt has no Debian's main archive among its sources"
    say "making a root file system of Debian $suite"
    rm -rf "$1.tmp"
    quietly mmdebstrap --variant=minbase --include="$DEBIAN_PACKAGES" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --customize-hook='printf "%s\n" erofs overlay >>"$1/etc/initramfs-tools/modules"' \
        --customize-hook="copy-in $OVERLAY_ROOT /etc/initramfs-tools/scripts/init-bottom" \
        --customize-hook='chroot "$1" update-initramfs -u' \
        "$suite" "$1.tmp" "$mirror"
    mv "$1.tmp" "$1"
}

# Where this machine's own apt gets Debian from, and its name for the release.
debian_mirror() {
    # shellcheck disable=SC2016  # apt's own variables
    apt-get indextargets --format '$(REPO_URI) $(CODENAME) $(COMPONENT) $(CREATED_BY)' 'Origin: Debian' |
        awk '$3 == "main" && $4 == "Packages" && $2 !~ /-/ { print $1, $2; exit }'
}
