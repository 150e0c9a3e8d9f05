# The options that nix/microvm.nix touches, with microvm.nix' defaults of summer 2026, and its `microvm-run`: preStart,
# then exec of the hypervisor with the store disk first. QEMU stands for the hypervisors that read a file.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) mkOption optionalString types;

  inherit (config) microvm;

  strings = mkOption { type = types.listOf types.str; default = [ ]; };
  package = default: mkOption { type = types.package; inherit default; };

  volume = index: "-drive id=vd${toString index},format=raw,file=${builtins.elemAt microvm.volumes index},if=none -device virtio-blk-${kind},drive=vd${toString index}";
  kind = if microvm.qemu.machine == "microvm" then "device" else "pci";

  qemu = ''
    exec -a "microvm@guest" ${microvm.qemu.package}/bin/qemu-system-x86_64 -M ${microvm.qemu.machine} -m ${toString microvm.mem}M \
      -append "${toString microvm.kernelParams} ''${QEMU_KERNEL_PARAMS:-}" \
      -drive id=store,format=raw,read-only=on,file=${microvm.storeDisk},if=none \
      -device virtio-blk-${kind},drive=store \
      ${optionalString (microvm.user != null) "-runas ${microvm.user}"} \
      ${toString (builtins.genList volume (builtins.length microvm.volumes))} \
      ${lib.escapeShellArgs microvm.qemu.extraArgs} \
      "$@"
  '';
  commands = {
    cloud-hypervisor = ''
      exec -a "microvm@guest" ${microvm.cloud-hypervisor.package}/bin/cloud-hypervisor \
        --memory mergeable=on,shared=off,size=${toString microvm.mem}M --disk path=${microvm.storeDisk},readonly=on "$@"
    '';
    crosvm = ''
      exec -a "microvm@guest" ${microvm.crosvm.package}/bin/crosvm run -m ${toString microvm.mem} -r ${microvm.storeDisk} "$@"
    '';
  };
in
{
  options = {
    assertions = mkOption { type = types.listOf types.raw; default = [ ]; };
    boot.initrd.kernelModules = strings;
    networking.hostName = mkOption { type = types.str; default = "guest"; };
    system.build = mkOption { type = types.attrsOf types.raw; default = { }; };
    microvm = {
      guest.enable = mkOption { type = types.bool; default = true; };
      hypervisor = mkOption {
        type = types.enum [ "qemu" "cloud-hypervisor" "firecracker" "crosvm" "kvmtool" "stratovirt" "alioth" "vfkit" ];
        default = "qemu";
      };
      vmHostPackages = mkOption { type = types.raw; default = pkgs; };
      preStart = mkOption { type = types.lines; default = ""; };
      user = mkOption { type = types.nullOr types.str; default = null; };
      kernelParams = strings;
      registerClosure = mkOption { type = types.bool; default = microvm.guest.enable; };
      mem = mkOption { type = types.ints.positive; default = 512; };
      hotplugMem = mkOption { type = types.ints.unsigned; default = 0; };
      shares = mkOption { type = types.listOf types.raw; default = [ ]; };
      devices = mkOption { type = types.listOf types.raw; default = [ ]; };
      volumes = mkOption { type = types.listOf types.str; default = [ ]; };
      graphics.enable = mkOption { type = types.bool; default = false; };
      storeOnDisk = mkOption {
        type = types.bool;
        default = !(builtins.any (share: share.source == "/nix/store") microvm.shares);
      };
      storeDisk = mkOption { type = types.path; };
      storeDiskType = mkOption { type = types.enum [ "squashfs" "erofs" ]; };
      cloud-hypervisor.package = package pkgs.cloud-hypervisor;
      crosvm.package = package pkgs.crosvm;
      qemu = {
        package = package pkgs.qemu;
        machine = mkOption { type = types.str; default = "microvm"; };
        extraArgs = strings;
      };
    };
  };

  config = {
    microvm = {
      storeDisk = pkgs.runCommand "store-disk" { } (throw "the store disk is built");
      storeDiskType = lib.mkDefault "erofs";
      kernelParams = lib.mkIf microvm.registerClosure [
        "regInfo=${pkgs.closureInfo { rootPaths = [ config.system.build.toplevel ]; }}/registration"
      ];
    };
    system.build.runner = pkgs.writeShellScript "microvm-run" ''
      set -eou pipefail
      ${microvm.preStart}
      ${commands.${microvm.hypervisor} or qemu}
    '';
  };
}
