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

  rest =
    { config, ... }:
    {
      # Definitions of options that nobody reads here.
      freeformType = types.lazyAttrsOf types.anything;
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
          kernelPackages = option types.raw { kernel = { out = "/nowhere/kernel"; dev = "/nowhere/kernel"; outPath = "/nowhere/kernel"; }; };
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
        system.build.initialRamdisk = "/nowhere/initrd";
        lib.kernelConfig = {
          isEnabled = name: name;
          isYes = name: name;
        };
      };
    };
  base = { config, ... }: {
    imports = [ rest ];
  };

  modules = nixpkgs + "/nixos/modules";
in
{
  nixos = [
    base
    (modules + "/virtualisation/qemu-vm.nix")
    # nixpkgs has it from the whole of NixOS.
    { system.build.toplevel = pkgs.guest; }
  ];
  microvm = [
    base
    (microvmNix + "/nixos-modules/microvm")
  ];
  command = guest: if microvmNix == null then null else guest.microvm.runner.${guest.microvm.hypervisor}.drvPath;
}
