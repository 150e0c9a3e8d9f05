# The options of NixOS that nix/qemu-vm.nix touches, with the defaults and definitions that nixpkgs'
# virtualisation/qemu-vm.nix has for them, and a start script that does what its script does: make a directory, go there,
# exec QEMU.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) mkIf mkOption types;

  vm = config.virtualisation;

  fileSystem = types.submodule {
    options = {
      device = mkOption { type = types.nullOr types.str; default = null; };
      label = mkOption { type = types.nullOr types.str; default = null; };
      fsType = mkOption { type = types.str; default = "auto"; };
      options = mkOption { type = types.listOf types.str; default = [ ]; };
      neededForBoot = mkOption { type = types.bool; default = false; };
      noCheck = mkOption { type = types.bool; default = false; };
      overlay = {
        lowerdir = mkOption { type = types.nullOr (types.listOf types.str); default = null; };
        upperdir = mkOption { type = types.nullOr types.str; default = null; };
        workdir = mkOption { type = types.nullOr types.str; default = null; };
      };
    };
  };

  share = types.submodule {
    options = {
      source = mkOption { type = types.str; };
      target = mkOption { type = types.path; };
    };
  };

  drive = types.submodule {
    options = {
      file = mkOption { type = types.str; };
      driveExtraOpts = mkOption { type = types.attrsOf types.str; default = { }; };
    };
  };

  driveOption =
    index: { file, driveExtraOpts }:
    let
      extra = map (key: ",${key}=${driveExtraOpts.${key}}") (builtins.attrNames driveExtraOpts);
    in
    "-drive if=none,id=drive${toString index},file=${file}${builtins.concatStringsSep "" extra} -device virtio-blk-pci,drive=drive${toString index}";

  drives = builtins.genList (index: driveOption index (builtins.elemAt vm.qemu.drives index)) (builtins.length vm.qemu.drives);
  shares = map (tag: "-virtfs local,path=${vm.sharedDirectories.${tag}.source},security_model=none,mount_tag=${tag}") (
    builtins.attrNames vm.sharedDirectories
  );
in
{
  options = {
    assertions = mkOption { type = types.listOf types.raw; default = [ ]; };
    boot.initrd = {
      kernelModules = mkOption { type = types.listOf types.str; default = [ ]; };
      checkJournalingFS = mkOption { type = types.bool; default = true; };
    };
    system.build = mkOption { type = types.attrsOf types.raw; default = { }; };
    virtualisation = {
      additionalPaths = mkOption { type = types.listOf types.path; default = [ ]; };
      fileSystems = mkOption { type = types.attrsOf fileSystem; default = { }; };
      host.pkgs = mkOption { type = types.raw; default = pkgs; };
      memorySize = mkOption { type = types.ints.positive; default = 1024; };
      mountHostNixStore = mkOption { type = types.bool; default = !vm.useNixStoreImage; };
      sharedDirectories = mkOption { type = types.attrsOf share; default = { }; };
      useNixStoreImage = mkOption { type = types.bool; default = false; };
      writableStore = mkOption { type = types.bool; default = vm.mountHostNixStore; };
      qemu = {
        package = mkOption { type = types.package; default = pkgs.qemu; };
        options = mkOption { type = types.listOf types.str; default = [ ]; };
        drives = mkOption { type = types.listOf drive; default = [ ]; };
      };
    };
  };

  config = {
    virtualisation = {
      sharedDirectories = {
        nix-store = mkIf vm.mountHostNixStore {
          source = builtins.storeDir;
          target = "/nix/.ro-store";
        };
        xchg = {
          source = ''"$TMPDIR"/xchg'';
          target = "/tmp/xchg";
        };
      };
      fileSystems = {
        "/nix/store" = mkIf (vm.useNixStoreImage || vm.mountHostNixStore) (
          if vm.writableStore then
            {
              overlay = {
                lowerdir = [ "/nix/.ro-store" ];
                upperdir = "/nix/.rw-store/upper";
                workdir = "/nix/.rw-store/work";
              };
            }
          else
            {
              device = "/nix/.ro-store";
              options = [ "bind" ];
            }
        );
        "/nix/.rw-store" = mkIf vm.writableStore {
          fsType = "tmpfs";
          options = [ "mode=0755" ];
          neededForBoot = true;
        };
      };
    };

    # In nixpkgs the part before -m comes from lib/qemu-common.nix.
    system.build.vm = pkgs.writeShellScript "run-guest-vm" ''
      set -e
      if [ -z "$TMPDIR" ] || [ -z "$USE_TMPDIR" ]; then
        TMPDIR=$(mktemp -d nix-vm.XXXXXXXXXX --tmpdir)
      fi
      mkdir -p "$TMPDIR/xchg"
      cd "$TMPDIR"
      exec ${vm.qemu.package}/bin/qemu-system-x86_64 -machine accel=kvm:tcg -cpu max \
        -name guest \
        -m ${toString vm.memorySize} \
        ${builtins.concatStringsSep " " (shares ++ drives ++ vm.qemu.options)} \
        $QEMU_OPTS \
        "$@"
    '';
  };
}
