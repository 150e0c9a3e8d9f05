# What tests/nix.rs evaluates and builds: the modules in nix/ with the options that they touch, and nothing else of NixOS.
# With `nixpkgs` and `microvmNix`, directories of the real ones, these take the place of the imitations next to this file.
{
  nixpkgs ? null,
  microvmNix ? null,
  lib ? if nixpkgs == null then import ./lib.nix else import (nixpkgs + "/lib"),
  lazystore ? "/nowhere/lazystore",
  qemu ? "/nowhere/qemu-system-x86_64",
  mkfsErofs ? toString ./fake/mkfs.erofs,
  # Whether the host is Linux, and not macOS.
  isLinux ? true,
  # What users of the modules for NixOS' VMs, for microvm.nix and for hosts write.
  user ? { },
  microvmUser ? { },
  hostUser ? { },
}:

let
  pkgs = import ./pkgs.nix { inherit lazystore qemu mkfsErofs isLinux; };
  real = import ./real.nix { inherit lib pkgs nixpkgs microvmNix; };

  evaluate =
    modules:
    lib.evalModules {
      inherit modules;
      specialArgs = {
        inherit lib;
        inherit (real) pkgs;
      };
    };

  evaluated = evaluate (
    (if nixpkgs == null then [ ./qemu-vm.nix ] else real.nixos)
    ++ [
      ../../nix/qemu-vm.nix
      { virtualisation.additionalPaths = [ pkgs.guest ]; }
      user
    ]
  );
  nixos = evaluated.config;
  vm = nixos.virtualisation;

  guest =
    (evaluate (
      (if microvmNix == null then [ ./microvm.nix ] else real.microvm)
      ++ [
        ../../nix/microvm.nix
        { system.build.toplevel = pkgs.guest; }
        microvmUser
      ]
    )).config;

  host = (evaluate [ ./host.nix ../../nix/host.nix hostUser ]).config;

  failed = config: map (a: a.message) (builtins.filter (a: !a.assertion) config.assertions);
  fileSystem = { device, label ? null, fsType, options, neededForBoot, noCheck, overlay, ... }: {
    inherit device label fsType options neededForBoot noCheck;
    inherit (overlay) lowerdir upperdir workdir;
  };
in
{
  inherit (pkgs) pv guest;
  inherit (vm.qemu) package;
  image = nixos.system.build.nixStoreImage;
  inherit (nixos.system.build) vm;
  runner = guest.system.build.runner or guest.microvm.runner.${guest.microvm.hypervisor};
  crosvm = guest.microvm.crosvm.package;

  # For nix-instantiate --eval --strict --json.
  summary = {
    inherit (nixos.boot) kernelParams;
    inherit (nixos.boot.initrd) kernelModules;
    checkJournalingFS = nixos.boot.initrd.checkJournalingFS or null;
    inherit (vm) writableStore mountHostNixStore sharedDirectories;
    inherit (vm.qemu) drives options;
    fileSystems = builtins.mapAttrs (_: fileSystem) nixos.fileSystems;
    storeType = vm.qemu.isolation.nixStoreFilesystemType;
    failedAssertions = failed nixos;
    image = if nixos.system.build ? nixStoreImage then nixos.system.build.nixStoreImage.type else null;
    package = "${vm.qemu.package}";
    startScript = vm.qemu.package.lazystoreStart.text or null;
    qemuVersion = vm.qemu.package.version;
    hostIsLinux = vm.qemu.package.stdenv.hostPlatform.isLinux;
  };

  host = {
    inherit (host.systemd) services sockets;
    packages = map toString host.systemd.packages;
    failedAssertions = failed host;
  };

  microvm = {
    inherit (guest.microvm) preStart kernelParams hypervisor;
    inherit (guest.microvm.qemu) extraArgs;
    storeDisk = if guest.microvm.storeOnDisk then guest.microvm.storeDisk else null;
    storeDiskType = if guest.microvm.storeOnDisk then guest.microvm.storeDiskType else null;
    inherit (guest.boot.initrd) kernelModules;
    # An older microvm.nix has no option for the package.
    startScript =
      let
        found = builtins.tryEval (guest.microvm.${guest.microvm.hypervisor}.package.lazystoreStart.text or null);
      in
      if found.success then found.value else null;
    failedAssertions = failed guest;
    # With the real microvm.nix: what starts the VM.
    command = if failed guest == [ ] then real.command guest else null;
  };
}
