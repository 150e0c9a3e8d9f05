# Wraps the package of a VMM (QEMU, cloud-hypervisor, crosvm) so that its programs start with the disk of `closure` attached.
# `lazystore run` serves the disk while they run.
{
  hostPkgs,
  lazystore,
  closure,
}:
package:

let
  # The program is the first argument. With a query option such as -version no VM starts, so no disk is attached.
  start = hostPkgs.writeShellScript "vmm-with-store" ''
    for argument in "''${@:2}"; do
      case $argument in
        -h | -help | --help | -version | --version | -V | help | '?' | *,help | *,'?') exec "$@" ;;
      esac
    done
    case ''${1##*/} in
      # The other subcommands of crosvm control or serve a running VM.
      crosvm) [[ " ''${*:2} " == *" run "* ]] || exec "$@" ;;
      # The host's kernel cannot merge shared memory (KSM), so remove the options with which microvm.nix requests that.
      cloud-hypervisor)
        arguments=() previous=
        for argument in "$@"; do
          if [ "$previous" = --memory ]; then
            argument=,$argument,
            argument=''${argument//,shared=off,/,}
            argument=''${argument//,mergeable=on,/,}
            argument=''${argument#,}
            argument=''${argument%,}
          fi
          arguments+=("$argument")
          previous=$argument
        done
        set -- "''${arguments[@]}"
        ;;
    esac
    # A socket path has at most 107 bytes. lazystore puts its socket into XDG_RUNTIME_DIR, or else into TMPDIR. Here TMPDIR is
    # the VM's own directory, whose path may be too long.
    if [ -z "''${XDG_RUNTIME_DIR:-}" ] && [ "''${#TMPDIR}" -gt 75 ]; then
      export XDG_RUNTIME_DIR=/tmp
    fi
    exec ${lazystore}/bin/lazystore run --closure-info ${closure} --with-registration --store-dir ${builtins.storeDir} -- "$@"
  '';

  # Links to everything else in the package, including firmware and qemu-img, at the same place as in the package.
  wrapped = hostPkgs.runCommand "vmm-with-store" { meta = package.meta or { }; } ''
    mkdir -p $out/bin
    for entry in ${package}/* ${package}/bin/*; do
      target=$out''${entry#${package}}
      case $target in
        $out/bin) ;;
        $out/bin/qemu-system-* | $out/bin/qemu-kvm | $out/bin/cloud-hypervisor | $out/bin/crosvm)
          printf '#!%s\nexec %s %s "$@"\n' ${hostPkgs.runtimeShell} ${start} "$entry" >"$target"
          chmod 755 "$target"
          ;;
        *) ln -s "$entry" "$target" ;;
      esac
    done
  '';
in
# nixpkgs also uses attributes of the original package, such as `stdenv` to choose the emulator. Tests use lazystoreStart.
package // wrapped // { lazystoreStart = start; }
