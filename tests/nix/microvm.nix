# The options that nix/microvm.nix touches, with microvm.nix' defaults, and its `microvm-run`: preStart, then exec of the
# hypervisor with the store disk first, as the runner for QEMU has it.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) mkOption types;

  inherit (config) microvm;
in
{
  options = {
    assertions = mkOption { type = types.listOf types.raw; default = [ ]; };
    networking.hostName = mkOption { type = types.str; default = "guest"; };
    system.build = mkOption { type = types.attrsOf types.raw; default = { }; };
    microvm = {
      guest.enable = mkOption { type = types.bool; default = true; };
      hypervisor = mkOption { type = types.enum [ "qemu" "cloud-hypervisor" "firecracker" "vfkit" ]; default = "qemu"; };
      vmHostPackages = mkOption { type = types.raw; default = pkgs; };
      preStart = mkOption { type = types.lines; default = ""; };
      mem = mkOption { type = types.ints.positive; default = 512; };
      hotplugMem = mkOption { type = types.ints.unsigned; default = 0; };
      shares = mkOption { type = types.listOf types.raw; default = [ ]; };
      devices = mkOption { type = types.listOf types.raw; default = [ ]; };
      graphics.enable = mkOption { type = types.bool; default = false; };
      storeOnDisk = mkOption {
        type = types.bool;
        default = !(builtins.any (share: share.source == "/nix/store") microvm.shares);
      };
      storeDisk = mkOption { type = types.path; };
      storeDiskType = mkOption { type = types.enum [ "squashfs" "erofs" ]; };
      qemu = {
        package = mkOption { type = types.package; default = pkgs.qemu; };
        machine = mkOption { type = types.str; default = "microvm"; };
        extraArgs = mkOption { type = types.listOf types.str; default = [ ]; };
      };
    };
  };

  config = {
    microvm.storeDisk = pkgs.runCommand "store-disk" { } (throw "the store disk is built");
    system.build.runner = pkgs.writeShellScript "microvm-run" ''
      set -eou pipefail
      ${microvm.preStart}
      exec -a "microvm@guest" ${microvm.qemu.package}/bin/qemu-system-x86_64 -M ${microvm.qemu.machine} -m ${toString microvm.mem}M \
        -drive id=store,format=raw,read-only=on,file=${microvm.storeDisk},if=none \
        -device virtio-blk-${if microvm.qemu.machine == "microvm" then "device" else "pci"},drive=store \
        ${lib.escapeShellArgs microvm.qemu.extraArgs} \
        "$@"
    '';
  };
}
