# NixOS VMs (nixos-rebuild build-vm, NixOS tests) with a /nix/store of their own instead of the host's: beside nixpkgs'
# virtualisation/qemu-vm.nix, or in virtualisation.vmVariant. The option is that of nixos-qemu-vm-isolation.
{
  config,
  lib,
  modulesPath,
  options,
  pkgs,
  ...
}:

let
  inherit (lib) mkDefault mkForce mkIf mkMerge mkOption types;

  vm = config.virtualisation;
  cfg = vm.qemu.isolation;
  hostPkgs = vm.host.pkgs;

  label = "nix-store";
  uuid = "eb176051-bd15-49b7-9e6b-462e0b467019"; # the one that nixpkgs gives a store disk
  lazy = cfg.nixStoreFilesystemType == "lazy";
  fsType = if lazy then "erofs" else cfg.nixStoreFilesystemType;
  mountPoint = if vm.writableStore then "/nix/.ro-store" else "/nix/store";

  closure = import ./store-closure.nix {
    pkgs = hostPkgs;
    rootPaths = vm.additionalPaths;
  };

  images = {
    ext4 = "${
      import (modulesPath + "/../lib/make-disk-image.nix") {
        inherit config lib pkgs label;
        additionalPaths = [ closure ];
        onlyNixStore = true;
        partitionTableType = "none";
        installBootLoader = false;
        diskSize = "auto";
        additionalSpace = "0M";
        copyChannel = false;
      }
    }/nixos.img";

    # Hard links are those of the host's `nix-store --optimise`, and no part of what a store path is.
    erofs = "${
      hostPkgs.runCommand "nix-store-image" { } ''
        mkdir $out
        sed 's|.*/||' ${closure}/store-paths |
          ${hostPkgs.gnutar}/bin/tar --create --directory=${builtins.storeDir} --verbatim-files-from --files-from=- \
            --sort=name --hard-dereference --owner=0 --group=0 --numeric-owner |
          ${hostPkgs.erofs-utils}/bin/mkfs.erofs --quiet -L ${label} -U ${uuid} -T 1 --tar=f $out/nix-store.img
      ''
    }/nix-store.img";
  };
in
{
  options.virtualisation.qemu = {
    isolation = {
      nixStoreFilesystemType = mkOption {
        type = types.enum [ "ext4" "erofs" "lazy" ];
        default = "lazy";
        description = ''
          What the guest's Nix store is.

          `"lazy"` is an EROFS disk that is never built: lazystore makes each block when the guest asks for it.
          `"ext4"` and `"erofs"` are images, built whenever the VM's closure changes.
        '';
      };
      package = mkOption {
        type = types.package;
        default = hostPkgs.lazystore or (hostPkgs.callPackage ./package.nix { });
        defaultText = lib.literalExpression "config.virtualisation.host.pkgs.lazystore";
        description = "The lazystore that serves the disk of a VM whose store is `\"lazy\"`.";
      };
    };

    # The script that starts a VM has no hook: it changes to the VM's directory and execs QEMU. So QEMU is what is
    # wrapped, and not the script (system.build.vm): here the arguments are known that really count, also -m and -machine
    # from $QEMU_OPTS or the script's own arguments; the process that a NixOS test or a service started is the one that
    # ends with the VM; reboots and snapshots stay within one QEMU. It is done to whatever package the option has, as
    # NixOS tests set their own.
    package = mkOption {
      apply =
        qemu:
        if lazy then
          import ./qemu-with-store.nix {
            inherit hostPkgs closure;
            lazystore = cfg.package;
          } qemu
        else
          qemu;
    };
  };

  config = mkMerge [
    {
      assertions = [
        {
          assertion = !vm.useNixStoreImage;
          message = "virtualisation.useNixStoreImage makes a store image too: set it to false, or do without lazystore's module.";
        }
        {
          assertion = lazy -> hostPkgs.stdenv.hostPlatform.isLinux;
          message = ''virtualisation.qemu.isolation.nixStoreFilesystemType = "lazy" needs a Linux host: use "erofs".'';
        }
      ];

      boot.initrd.kernelModules = lib.optional (fsType == "erofs") "erofs";

      virtualisation = {
        # Nothing of the host's.
        sharedDirectories = mkForce { };
        mountHostNixStore = mkForce false;

        # As it is with the host's store.
        writableStore = mkDefault true;

        fileSystems = mkMerge [
          {
            ${mountPoint} = {
              inherit fsType label;
              options = [ "ro" ];
              neededForBoot = true;
              noCheck = true;
            };
          }
          # Without a host store qemu-vm.nix has only the tmpfs at /nix/.rw-store.
          (mkIf vm.writableStore {
            "/nix/store".overlay = {
              lowerdir = [ mountPoint ];
              upperdir = "/nix/.rw-store/upper";
              workdir = "/nix/.rw-store/work";
            };
          })
        ];
      };
    }

    (mkIf (!lazy) {
      system.build.nixStoreImage = images.${fsType};
      virtualisation.qemu.drives = [
        {
          file = config.system.build.nixStoreImage;
          driveExtraOpts = {
            format = "raw";
            read-only = "on";
            werror = "report";
          };
        }
      ];
    })

    # The scripted initrd checks journaling file systems whatever noCheck says, and fails on a disk that it cannot write.
    (lib.optionalAttrs (options.boot.initrd ? checkJournalingFS) {
      boot.initrd.checkJournalingFS = mkIf (fsType == "ext4") false;
    })
  ];
}
