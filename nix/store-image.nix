# An image of a closure: a derivation that contains nixos.img, whose root directory is a /nix/store. As on the lazy disk, root
# owns all files, mtimes are 1 as in a Nix store, and .lazystore contains the closure's registration.
{
  hostPkgs,
  closure,
  fsType,
  label,
  uuid,
}:

let
  registration = ''
    mkdir -p root/.lazystore
    cp ${closure}/registration root/.lazystore/registration
    chmod 444 root/.lazystore/registration
    chmod 555 root/.lazystore
    chmod 755 root
  '';

  # Hard links are dropped: the host's `nix-store --optimise` makes them, and they are not part of a store path. Stores on macOS
  # mark names that differ only in case; the marks are removed. `pack` writes the registration and the closure's store paths.
  # The root directory must be the first entry; otherwise mkfs.erofs makes one with mode 0777.
  pack = ''
    pack() {
      sed 's|.*/||' ${closure}/store-paths |
        ${hostPkgs.gnutar}/bin/tar --create --format=gnu --sort=name --hard-dereference \
          --owner=0 --group=0 --numeric-owner --mtime=@1 --transform='flags=rSh;s|~nix~case~hack~[0-9]*||g' \
          --no-recursion --directory="$PWD/root" . .lazystore .lazystore/registration \
          --recursion --directory=${builtins.storeDir} --verbatim-files-from --files-from=-
    }
  '';

  make = {
    erofs = ''
      pack | ${hostPkgs.erofs-utils}/bin/mkfs.erofs --quiet -L ${label} -U ${uuid} -T 1 --tar=f $out/nixos.img
    '';

    # mke2fs fills the image from a directory and copies the owners of its files. Builders are not root, hence fakeroot. The
    # image is made too large and shrunk afterwards. It is read-only, so it has no journal. The hash seed is given because
    # mke2fs would choose a random one.
    ext4 = ''
      export SOURCE_DATE_EPOCH=1 E2FSPROGS_FAKE_TIME=1
      pack >store.tar
      chmod -R u+w root && rm -r root && mkdir root
      ${hostPkgs.fakeroot}/bin/fakeroot sh -euc '
        ${hostPkgs.gnutar}/bin/tar --extract --preserve-permissions --same-owner --directory=root --file=store.tar
        rm store.tar
        inodes=$(find root | wc -l)
        blocks=$(find root -type f -printf "%s\n" | awk "{ n += int((\$1 + 4095) / 4096) } END { print n }")
        dirs=$(find root -type d -printf "%s\n" | awk "{ n += int((\$1 + 4095) / 4096) } END { print n }")
        long_links=$(find root -type l -printf "%s\n" | awk "\$1 >= 60 { n++ } END { print n + 0 }")
        inodes=$((inodes + 1000))
        blocks=$(((blocks + dirs * 2 + long_links + inodes / 16) * 11 / 10 + 4096))
        ${hostPkgs.e2fsprogs}/bin/mke2fs -q -t ext4 -b 4096 -I 256 -N $inodes -m 0 -O ^has_journal,^resize_inode \
          -L ${label} -U ${uuid} -E hash_seed=${uuid},root_owner=0:0,nodiscard,lazy_itable_init=0 \
          -d root "$out/nixos.img" $blocks
      '
      # The tar archive sets only mtimes, so this replaces the other times, which are those of the build. Inodes are numbered in
      # order of creation: 2 is the root directory, 11 is lost+found (removed), and the files start at 12.
      last=$(${hostPkgs.e2fsprogs}/bin/dumpe2fs -h $out/nixos.img | awk -F: '
        /^Inode count/ { n += $2 } /^Free inodes/ { n -= $2 } END { print n }')
      {
        echo 'rmdir lost+found'
        for inode in 2 $(seq 12 "$last"); do
          printf 'set_inode_field <%s> %s @1\n' "$inode" atime "$inode" ctime "$inode" crtime "$inode" mtime
        done
      } >commands
      ${hostPkgs.e2fsprogs}/bin/debugfs -w -f commands $out/nixos.img >/dev/null
      ${hostPkgs.e2fsprogs}/bin/resize2fs -M $out/nixos.img
      ${hostPkgs.e2fsprogs}/bin/e2fsck -n -f $out/nixos.img
    '';
  };
in
hostPkgs.runCommand "nix-store-image" { } ''
  set -o pipefail
  mkdir $out
  ${registration}
  ${pack}
  ${make.${fsType}}
''
