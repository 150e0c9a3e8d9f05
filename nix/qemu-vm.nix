# NixOS VMs (nixos-rebuild build-vm, NixOS tests) with their own /nix/store instead of the host's. Import this next to nixpkgs'
# virtualisation/qemu-vm.nix, or in virtualisation.vmVariant. The option has the same name as in nixos-qemu-vm-isolation.
{
  config,
  lib,
  options,
  pkgs,
  ...
}:

let
  inherit (lib) mkAfter mkBefore mkDefault mkForce mkIf mkMerge mkOption types;

  vm = config.virtualisation;
  cfg = vm.qemu.isolation;
  hostPkgs = vm.host.pkgs;
  hostIsLinux = hostPkgs.stdenv.hostPlatform.isLinux;

  label = "nix-store";
  uuid = "eb176051-bd15-49b7-9e6b-462e0b467019"; # the one that nixpkgs gives a store disk
  lazy = cfg.nixStoreFilesystemType == "lazy";
  fsType = if lazy then "erofs" else cfg.nixStoreFilesystemType;
  mountPoint = if vm.writableStore then "/nix/.ro-store" else "/nix/store";

  closure = hostPkgs.closureInfo { rootPaths = vm.additionalPaths; };

  image = import ./store-image.nix {
    inherit hostPkgs closure fsType label uuid;
  };

  # Whether a share exposes the host's store, as far as its source is known before the VM starts. The source may contain shell
  # code, such as "$TMPDIR"/xchg.
  showsHostStore =
    { source, ... }:
    let
      plain = lib.removeSuffix "/" (lib.replaceStrings [ "\"" "'" ] [ "" "" ] source);
    in
    lib.hasPrefix (plain + "/") (builtins.storeDir + "/") || lib.hasPrefix (builtins.storeDir + "/") plain;
in
{
  options.virtualisation = {
    qemu = {
      isolation = {
        nixStoreFilesystemType = mkOption {
          type = types.enum [ "ext4" "erofs" "lazy" ];
          default = if hostIsLinux then "lazy" else "erofs";
          defaultText = lib.literalExpression ''if the host is Linux then "lazy" else "erofs"'';
          description = ''
            The kind of disk that holds the guest's Nix store.

            `"lazy"` is an EROFS disk that is never built: lazystore generates each block when the guest reads it. It
            needs a Linux host.
            `"ext4"` and `"erofs"` are images, built whenever the VM's closure changes.
          '';
        };
        keepSharedDirectories = mkOption {
          type = types.bool;
          default = true;
          description = ''
            Whether the guest keeps its shared directories other than the store: those in
            {option}`virtualisation.sharedDirectories`, and nixpkgs' own `xchg`, `shared` and `certs`. The driver of
            NixOS tests copies files through them (`copy_from_host`, `copy_from_machine`).

            `false` shares nothing at all, as nixos-qemu-vm-isolation does.
          '';
        };
        package = mkOption {
          type = types.package;
          default = hostPkgs.lazystore or (hostPkgs.callPackage ./package.nix { });
          defaultText = lib.literalExpression "config.virtualisation.host.pkgs.lazystore";
          description = "The lazystore that serves the disk of a VM whose store is `\"lazy\"`.";
        };
      };

      # The script that starts a VM (system.build.vm) has no hook: it changes to the VM's directory and execs QEMU. So this
      # wraps QEMU instead of the script. The wrapper sees QEMU's final arguments, including -m and -machine from $QEMU_OPTS
      # or from the script's own arguments. The process that a NixOS test or a service started ends with the VM. Reboots and
      # snapshots stay within one QEMU. `apply` wraps any package, because NixOS tests set their own.
      package = mkOption {
        apply =
          qemu:
          if lazy then
            import ./vmm-with-store.nix {
              inherit hostPkgs closure;
              lazystore = cfg.package;
            } qemu
          else
            qemu;
      };
    };

    sharedDirectories = mkOption {
      apply = shares: if cfg.keepSharedDirectories then shares else { };
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
          assertion = !vm.useBootLoader;
          message = "virtualisation.useBootLoader boots from a disk that has a store of its own, which lazystore's module would hide, and what is switched to would be lost at the next boot: set it to false, or do without lazystore's module.";
        }
        {
          assertion = lazy -> hostIsLinux;
          message = ''virtualisation.qemu.isolation.nixStoreFilesystemType = "lazy" needs a Linux host: use "erofs".'';
        }
        {
          assertion = config.fileSystems ? ${mountPoint};
          message = "Nothing is mounted at ${mountPoint}, so the VM has no store: virtualisation.fileSystems was overridden (mkForce). Mount the disk with the label ${label} there, or leave lazystore's definitions in.";
        }
      ]
      ++ lib.mapAttrsToList (name: share: {
        assertion = !(showsHostStore share);
        message = "virtualisation.sharedDirectories.${name} shares ${share.source}, and with it the host's Nix store: share another directory, or do without lazystore's module.";
      }) vm.sharedDirectories;

      boot.initrd.kernelModules = lib.optional (fsType == "erofs") "erofs";

      # The guest loads this file into its Nix database. nixpkgs adds its own regInfo only to VMs with the host's store or with
      # its own image. The first regInfo on the command line counts. The file is not in a path of the closure, because a
      # closure cannot contain its own registration.
      boot.kernelParams = mkBefore [ "regInfo=/nix/store/.lazystore/registration" ];

      virtualisation = {
        mountHostNixStore = mkForce false;

        # The default with the host's store.
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
      system.build.nixStoreImage = image;

      # After all other disks, so that these keep their names /dev/vda, /dev/vdb ...; the lazy disk is the last one too.
      virtualisation.qemu.drives = mkAfter [
        {
          name = "nixstore";
          file = "${image}/nixos.img";
          driveExtraOpts = {
            format = "raw";
            read-only = "on";
            werror = "report";
          };
          # The serial of the lazy disk: /dev/disk/by-id/virtio-nixstore.
          deviceExtraOpts.serial = "nixstore";
        }
      ];
    })

    # The scripted initrd checks journaling file systems despite noCheck, and fails on a read-only disk. systemd's initrd
    # respects noCheck, so it may check the root file system.
    (lib.optionalAttrs (options.boot.initrd ? checkJournalingFS) {
      boot.initrd.checkJournalingFS = mkIf (fsType == "ext4" && !config.boot.initrd.systemd.enable) false;
    })
  ];
}
