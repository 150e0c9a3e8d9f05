# A QEMU package whose emulators start with the disk of `closure` attached: `lazystore run` serves it while they run.
{
  hostPkgs,
  lazystore,
  closure,
}:
qemu:

let
  # The emulator comes first, then its arguments. Those that only ask QEMU something start no VM and get no disk.
  start = hostPkgs.writeShellScript "qemu-with-store" ''
    for argument in "$@"; do
      case $argument in
        -h | -help | --help | -version | --version | help | '?' | *,help | *,'?') exec "$@" ;;
      esac
    done
    # The path of a socket has 107 bytes at most. lazystore's is in XDG_RUNTIME_DIR, or else in TMPDIR, which here is the
    # VM's own directory, wherever that may be.
    if [ -z "''${XDG_RUNTIME_DIR:-}" ] && [ "''${#TMPDIR}" -gt 75 ]; then
      export XDG_RUNTIME_DIR=/tmp
    fi
    exec ${lazystore}/bin/lazystore run --closure-info ${closure} --store-dir ${builtins.storeDir} -- "$@"
  '';

  # All that is in the package, firmware and qemu-img too, is where users of the package look for it.
  wrapped = hostPkgs.runCommand "qemu-with-store" { meta = qemu.meta or { }; } ''
    mkdir -p $out/bin
    for entry in ${qemu}/* ${qemu}/bin/*; do
      target=$out''${entry#${qemu}}
      case $target in
        $out/bin) ;;
        $out/bin/qemu-system-* | $out/bin/qemu-kvm)
          printf '#!%s\nexec %s %s "$@"\n' ${hostPkgs.runtimeShell} ${start} "$entry" >"$target"
          chmod 755 "$target"
          ;;
        *) ln -s "$entry" "$target" ;;
      esac
    done
  '';
in
# The attributes of the original are asked for too: nixpkgs chooses the emulator by `stdenv`. The script is for tests.
qemu // wrapped // { lazystoreStart = start; }
