# An image of a closure: a derivation that holds nixos.img, whose root directory is a /nix/store. As on the lazy disk,
# everything belongs to root, is as old as all things in a Nix store, and the closure's registration is in .lazystore.
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

  # Hard links are those of the host's `nix-store --optimise`, and no part of what a store path is. Stores on macOS mark
  # names that differ only in case; the guest's does not. `pack MEMBER...` writes the registration, MEMBERs of it, and
  # the store paths that standard input names; the root directory is the first entry, or mkfs.erofs invents one (0777).
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

    # mke2fs fills the image from a directory, and takes owners from what it finds there: fakeroot, as builders are not
    # root. It is given more room than is needed, for an image that is made smaller afterwards. Nobody writes to it, so
    # there is no journal. Each file system has a random number of its own for hashes of names, unless it is given.
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
      # Times that a tar does not hold are those of this build; inodes are numbered in the order in which they are made.
      # The root directory is number 2, and 11 is lost+found, which no store has.
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
