# The real qemu-vm.nix of nixpkgs and the real microvm.nix, among stand-ins for the rest of NixOS: what they read is
# declared here, and what they define besides is taken as it is.
{
  lib,
  pkgs,
  nixpkgs,
  microvmNix,
}:

let
  inherit (lib) mkOption types;

  option = type: default: mkOption { inherit type default; };
  strings = option (types.listOf types.str) [ ];
  bool = option types.bool;

  fileSystem =
    { config, name, ... }:
    {
      options = {
        mountPoint = option types.str name;
        device = option (types.nullOr types.str) null;
        label = option (types.nullOr types.str) null;
        fsType = option types.str "auto";
        options = strings;
        neededForBoot = bool false;
        noCheck = bool false;
        overlay = {
          lowerdir = option (types.nullOr (types.listOf types.str)) null;
          upperdir = option (types.nullOr types.str) null;
          workdir = option (types.nullOr types.str) null;
        };
      };
      config.device = lib.mkIf (config.label != null) (lib.mkDefault "/dev/disk/by-label/${config.label}");
    };

  rest = {
      options = {
        assertions = option (types.listOf types.raw) [ ];
        warnings = strings;
        fileSystems = option (types.attrsOf (types.submodule fileSystem)) { };
        swapDevices = option (types.listOf types.raw) [ ];
        nixpkgs.pkgs = mkOption { type = types.raw; };
        networking.hostName = option types.str "guest";
        nix = {
          enable = bool true;
          package = option types.raw { out = "/nowhere/nix"; outPath = "/nowhere/nix"; meta.mainProgram = "nix"; };
          daemonUser = option types.str "root";
          daemonGroup = option types.str "root";
          optimise.automatic = bool false;
          settings = option (types.attrsOf types.anything) { auto-optimise-store = false; };
        };
        services.xserver.resolutions = option (types.listOf (types.submodule { options = { x = option types.int 0; y = option types.int 0; }; })) [ ];
        services.openssh.enable = bool false;
        security.virtualisation.flushL1DataCache = option (types.nullOr types.str) null;
        system = {
          build = option (types.lazyAttrsOf types.raw) { };
          name = option types.str "guest";
          switch.enable = bool true;
          boot.loader.initrdFile = option types.str "initrd";
          boot.loader.kernelFile = option types.str "bzImage";
          stateVersion = option types.str "26.05";
          nixos.label = option types.str "guest";
          requiredKernelConfig = option (types.listOf types.raw) [ ];
        };
        boot = {
          kernelParams = strings;
          tmp = {
            useTmpfs = bool false;
            tmpfsFinalOptions = strings;
            tmpfsSize = option types.str "50%";
          };
          kernelPackages = option types.raw { kernel = package "kernel" // { dev = package "kernel-dev"; }; };
          loader.efi.efiSysMountPoint = option types.str "/boot";
          initrd = {
            kernelModules = strings;
            availableKernelModules = strings;
            checkJournalingFS = bool true;
            systemd.enable = bool true;
          };
        };
        lib = option (types.attrsOf types.raw) { };
      };
      config = {
        # Definitions of options that nobody reads here.
        _module.check = false;
        system.build.initialRamdisk = "/nowhere/initrd";
        lib.kernelConfig = {
          isEnabled = name: name;
          isYes = name: name;
        };
      };
    };
  # What the real ones want of nixpkgs besides; only its names matter here.
  package = name: pkgs.runCommand name { } "mkdir $out" // { pname = name; version = "1"; override = _: package name; };
  packages = lib.genAttrs [
    "OVMFFull" "alioth" "bash" "bubblewrap" "coreutils" "curl" "expect" "firecracker" "gawk" "gnused" "jq" "kmod" "kvmtool" "libusb1"
    "libguestfs" "libguestfs-appliance" "linux" "netcat" "parted" "python3" "qemu" "socat" "squashfs-tools-ng"
    "stratovirt" "swtpm" "systemd" "time" "tpm2-tools" "vfkit" "virtiofsd" "waypipe"
  ] package;
  platform = rec {
    system = "x86_64-linux";
    qemuArch = "x86_64";
    inherit (pkgs.stdenv.hostPlatform) isLinux isDarwin;
    isx86 = true;
    isx86_64 = true;
    isAarch = false;
    is32bit = false;
    linux-kernel.target = "bzImage";
  };
  stdenv = {
    hostPlatform = platform;
    targetPlatform = platform;
    buildPlatform = platform;
    inherit (platform) system;
  };
  whole =
    packages
    // pkgs
    // {
      inherit lib stdenv;
      _type = "pkgs";
      buildPackages = whole;
      inherit (platform) system;
      qemu = pkgs.qemu // { inherit stdenv; override = _: whole.qemu; overrideAttrs = _: whole.qemu; };
      qemu_kvm = whole.qemu;
      cloud-hypervisor-graphics = pkgs.cloud-hypervisor;
      writers.writeJSON = name: value: pkgs.runCommand name { text = builtins.toJSON value; } "echo \"$text\" >$out";
      formats.json = _: { generate = name: _: package name; };
      runCommandLocal = pkgs.runCommand;
      erofs-utils = pkgs.erofs-utils // { overrideAttrs = _: pkgs.erofs-utils; };
      writeScript = pkgs.writeShellScript;
      writeText = name: text: pkgs.runCommand name { inherit text; } "echo \"$text\" >$out";
      writeClosure = _: "/nowhere/closure";
    };

  modules = nixpkgs + "/nixos/modules";
in
{
  pkgs = if nixpkgs == null then pkgs else whole;
  nixos = [
    rest
    (modules + "/virtualisation/qemu-vm.nix")
    # nixpkgs has it from the whole of NixOS.
    { system.build.toplevel = pkgs.guest; }
  ];
  microvm = [
    rest
    (microvmNix + "/nixos-modules/microvm")
  ];
  command = guest: if microvmNix == null then null else guest.microvm.runner.${guest.microvm.hypervisor}.drvPath;
}
