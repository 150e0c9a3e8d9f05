# A package of a VMM (QEMU, cloud-hypervisor, crosvm) whose programs start with the disk of `closure` attached:
# `lazystore run` serves it while they run.
{
  hostPkgs,
  lazystore,
  closure,
}:
package:

let
  # The program comes first, then its arguments. Those that only ask it something start no VM and get no disk.
  start = hostPkgs.writeShellScript "vmm-with-store" ''
    for argument in "''${@:2}"; do
      case $argument in
        -h | -help | --help | -version | --version | -V | help | '?' | *,help | *,'?') exec "$@" ;;
      esac
    done
    case ''${1##*/} in
      # Its other subcommands talk to a VM that runs, or serve one.
      crosvm) [[ " ''${*:2} " == *" run "* ]] || exec "$@" ;;
      # Memory that lazystore shares cannot be merged by the host's kernel as well; microvm.nix asks for that.
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
    # The path of a socket has 107 bytes at most. lazystore's is in XDG_RUNTIME_DIR, or else in TMPDIR, which here is the
    # VM's own directory, wherever that may be.
    if [ -z "''${XDG_RUNTIME_DIR:-}" ] && [ "''${#TMPDIR}" -gt 75 ]; then
      export XDG_RUNTIME_DIR=/tmp
    fi
    exec ${lazystore}/bin/lazystore run --closure-info ${closure} --with-registration --store-dir ${builtins.storeDir} -- "$@"
  '';

  # All that is in the package, firmware and qemu-img too, is where users of the package look for it.
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
# The attributes of the original are asked for too: nixpkgs chooses the emulator by `stdenv`. The script is for tests.
package // wrapped // { lazystoreStart = start; }
