# What tests/nix.rs evaluates and builds: the modules in nix/ with the options that they touch, and nothing else of NixOS.
{
  lib ? import ./lib.nix,
  lazystore ? "/nowhere/lazystore",
  qemu ? "/nowhere/qemu-system-x86_64",
  # What a user of the NixOS module writes, and one of the microvm.nix module.
  user ? { },
  microvmUser ? { },
}:

let
  pkgs = import ./pkgs.nix { inherit lazystore qemu; };

  evaluate =
    modules:
    (lib.evalModules {
      inherit modules;
      specialArgs = {
        inherit lib pkgs;
        modulesPath = ./nixos/modules;
      };
    }).config;

  nixos = evaluate [
    ./qemu-vm.nix
    ../../nix/qemu-vm.nix
    { virtualisation.additionalPaths = [ pkgs.guest ]; }
    user
  ];

  guest = evaluate [
    ./microvm.nix
    ../../nix/microvm.nix
    { system.build.toplevel = pkgs.guest; }
    microvmUser
  ];

  failed = config: map (a: a.message) (builtins.filter (a: !a.assertion) config.assertions);
in
{
  inherit (pkgs) pv;
  guest = pkgs.guest;
  qemu = nixos.virtualisation.qemu.package;
  inherit (nixos.system.build) vm;
  inherit (guest.system.build) runner;

  # For nix-instantiate --eval --strict --json.
  summary = {
    inherit (nixos.boot) initrd;
    inherit (nixos.virtualisation) writableStore mountHostNixStore sharedDirectories fileSystems;
    inherit (nixos.virtualisation.qemu) drives;
    failedAssertions = failed nixos;
    built = builtins.attrNames nixos.system.build;
    vmScript = nixos.system.build.vm.text;
    startScript = nixos.virtualisation.qemu.package.lazystoreStart.text or null;
    qemuVersion = nixos.virtualisation.qemu.package.version;
    hostIsLinux = nixos.virtualisation.qemu.package.stdenv.hostPlatform.isLinux;
  };

  microvm = {
    inherit (guest.microvm) preStart;
    inherit (guest.microvm.qemu) extraArgs;
    storeDisk = if guest.microvm.storeOnDisk then guest.microvm.storeDisk else null;
    storeDiskType = if guest.microvm.storeOnDisk then guest.microvm.storeDiskType else null;
    failedAssertions = failed guest;
  };
}
