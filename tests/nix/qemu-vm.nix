# The options of NixOS that nix/qemu-vm.nix touches, with the defaults and definitions that nixpkgs'
# virtualisation/qemu-vm.nix has for them in autumn 2026, and a start script that does what its script does: make disks
# and a directory, go there, start a virtiofsd for each share, exec QEMU.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) mkIf mkMerge mkOption mapAttrsToList optionalString types;
  inherit (builtins) concatStringsSep genList elemAt length listToAttrs map attrNames;

  vm = config.virtualisation;
  useVirtiofs = vm.host.pkgs.stdenv.hostPlatform.isLinux;

  strings = mkOption { type = types.listOf types.str; default = [ ]; };
  bool = default: mkOption { type = types.bool; inherit default; };
  attrs = type: mkOption { type = types.attrsOf type; default = { }; };
  nullOr = type: mkOption { type = types.nullOr type; default = null; };

  fileSystem = types.submodule {
    options = {
      device = nullOr types.str;
      label = nullOr types.str;
      fsType = mkOption { type = types.str; default = "auto"; };
      options = strings;
      neededForBoot = bool false;
      noCheck = bool false;
      overlay = {
        lowerdir = nullOr (types.listOf types.str);
        upperdir = nullOr types.str;
        workdir = nullOr types.str;
      };
    };
  };

  share = types.submodule {
    options = {
      source = mkOption { type = types.str; };
      target = mkOption { type = types.path; };
      writable = bool false;
    };
  };

  drive = types.submodule {
    options = {
      name = nullOr types.str;
      file = mkOption { type = types.str; };
      driveExtraOpts = attrs types.str;
      deviceExtraOpts = attrs types.str;
    };
  };

  pairs = set: concatStringsSep "," (mapAttrsToList (key: value: "${key}=${toString value}") set);
  driveOption =
    index:
    let
      inherit (elemAt vm.qemu.drives index) file driveExtraOpts deviceExtraOpts;
      id = "drive${toString (index + 1)}";
      on = { inherit file id; "if" = "none"; index = index + 1; };
    in
    "-drive ${pairs (driveExtraOpts // on)} -device virtio-blk-pci,${pairs (deviceExtraOpts // { drive = id; })}";
  drives = genList driveOption (length vm.qemu.drives);

  socketOf = tag: "$NIX_VIRTIOFS_DIR/${tag}";
  shareOptions =
    tag: share:
    if useVirtiofs then
      [ "-chardev socket,id=${tag},path=${socketOf tag}" "-device vhost-user-fs-pci,chardev=${tag},tag=${tag}" ]
    else
      [ "-virtfs local,path=${share.source},security_model=none,mount_tag=${tag}${optionalString (!share.writable) ",readonly=on"}" ];

  # The real one does not wait for the sockets.
  daemon = tag: share: ''
    ${pkgs.virtiofsd}/bin/virtiofsd --socket-path="${socketOf tag}" --shared-dir="$(readlink -f "${share.source}")" \
      --sandbox=none --seccomp=none --cache=always &
    until [ -S "${socketOf tag}" ] || ! kill -0 $!; do sleep 0.05; done
  '';

  registration = pkgs.closureInfo { rootPaths = vm.additionalPaths; };
  regInfoParam = optionalString (
    vm.useNixStoreImage || vm.mountHostNixStore
  ) " regInfo=/nix/.ro-store/${baseNameOf registration}/registration";
in
{
  options = {
    assertions = mkOption { type = types.listOf types.raw; default = [ ]; };
    boot = {
      kernelParams = strings;
      initrd = {
        kernelModules = strings;
        checkJournalingFS = bool true;
        systemd.enable = bool true;
      };
    };
    fileSystems = attrs fileSystem;
    system.build = attrs types.raw;
    virtualisation = {
      additionalPaths = mkOption { type = types.listOf types.path; default = [ ]; };
      diskImage = mkOption { type = types.nullOr types.str; default = "./guest.qcow2"; };
      emptyDiskImages = mkOption { type = types.listOf types.ints.positive; default = [ ]; };
      fileSystems = attrs fileSystem;
      host.pkgs = mkOption { type = types.raw; default = pkgs; };
      memorySize = mkOption { type = types.ints.positive; default = 1024; };
      mountHostNixStore = bool (!vm.useNixStoreImage && !vm.useBootLoader);
      sharedDirectories = attrs share;
      useBootLoader = bool false;
      useHostCerts = bool false;
      useNixStoreImage = bool false;
      writableStore = bool vm.mountHostNixStore;
      qemu = {
        enableSharedMemory = bool useVirtiofs;
        package = mkOption { type = types.package; default = pkgs.qemu; };
        options = strings;
        drives = mkOption { type = types.listOf drive; default = [ ]; };
      };
    };
  };

  config = {
    fileSystems = mkIf (vm.fileSystems != { }) (lib.mkVMOverride vm.fileSystems);

    virtualisation = {
      sharedDirectories = {
        nix-store = mkIf vm.mountHostNixStore {
          source = builtins.storeDir;
          target = "/nix/.ro-store";
        };
        xchg = {
          source = ''"$TMPDIR"/xchg'';
          target = "/tmp/xchg";
          writable = true;
        };
        shared = {
          source = ''"''${SHARED_DIR:-$TMPDIR/xchg}"'';
          target = "/tmp/shared";
          writable = true;
        };
        certs = mkIf vm.useHostCerts {
          source = ''"$TMPDIR"/certs'';
          target = "/etc/ssl/certs";
        };
      };
      fileSystems = mkMerge [
        (listToAttrs (
          map (tag: {
            name = vm.sharedDirectories.${tag}.target;
            value = {
              device = tag;
              fsType = if useVirtiofs then "virtiofs" else "9p";
              neededForBoot = true;
            };
          }) (attrNames vm.sharedDirectories)
        ))
        {
          "/" = {
            device = "/dev/disk/by-label/nixos";
            fsType = "ext4";
          };
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
                fsType = "none";
                options = [ "bind" ];
              }
          );
          "/nix/.ro-store" = mkIf vm.useNixStoreImage {
            device = "/dev/disk/by-label/nix-store";
            fsType = "erofs";
            neededForBoot = true;
            options = [ "ro" ];
          };
          "/nix/.rw-store" = mkIf vm.writableStore {
            fsType = "tmpfs";
            options = [ "mode=0755" ];
            neededForBoot = true;
          };
        }
      ];
      qemu = {
        drives = mkMerge [
          (mkIf (vm.diskImage != null) [
            {
              name = "root";
              file = ''"$NIX_DISK_IMAGE"'';
              driveExtraOpts = { cache = "writeback"; werror = "report"; };
              deviceExtraOpts = { bootindex = "1"; serial = "root"; };
            }
          ])
          (mkIf vm.useNixStoreImage [ { name = "nix-store"; file = ''"$TMPDIR"/store.img''; driveExtraOpts.format = "raw"; } ])
          (genList (index: {
            file = "$(pwd)/empty${toString index}.qcow2";
            driveExtraOpts.werror = "report";
          }) (length vm.emptyDiskImages))
        ];
        options = mkMerge [
          (mkIf vm.qemu.enableSharedMemory [
            "-object memory-backend-memfd,id=mem0,size=${toString vm.memorySize}M,share=on"
            "-machine memory-backend=mem0"
          ])
          (builtins.concatLists (mapAttrsToList shareOptions vm.sharedDirectories))
          # Kernel and initrd are the test's.
          [ ''-append "${toString config.boot.kernelParams}${regInfoParam} $QEMU_KERNEL_PARAMS"'' ]
        ];
      };
    };

    # In nixpkgs the part before -name comes from lib/qemu-common.nix.
    system.build.vm = pkgs.writeShellScript "run-guest-vm" ''
      set -e
      NIX_DISK_IMAGE=$(readlink -f "''${NIX_DISK_IMAGE:-${toString vm.diskImage}}") || test -z "$NIX_DISK_IMAGE"
      if test -n "$NIX_DISK_IMAGE" && ! test -e "$NIX_DISK_IMAGE"; then
        temp=$(mktemp)
        ${vm.qemu.package}/bin/qemu-img create -q -f raw "$temp" 16M
        ${pkgs.e2fsprogs}/bin/mkfs.ext4 -q -L nixos "$temp"
        ${vm.qemu.package}/bin/qemu-img convert -f raw -O qcow2 "$temp" "$NIX_DISK_IMAGE"
        rm "$temp"
      fi
      if [ -z "$TMPDIR" ] || [ -z "$USE_TMPDIR" ]; then
        TMPDIR=$(mktemp -d nix-vm.XXXXXXXXXX --tmpdir)
      fi
      mkdir -p "$TMPDIR/xchg"
      cd "$TMPDIR"
      ${concatStringsSep "\n" (
        genList (index: ''
          test -e empty${toString index}.qcow2 || ${vm.qemu.package}/bin/qemu-img create -q -f qcow2 empty${toString index}.qcow2 ${toString (elemAt vm.emptyDiskImages index)}M
        '') (length vm.emptyDiskImages)
      )}
      ${optionalString useVirtiofs ''
        NIX_VIRTIOFS_DIR=$(mktemp -d)
        ${concatStringsSep "\n" (mapAttrsToList daemon vm.sharedDirectories)}
      ''}
      exec ${vm.qemu.package}/bin/qemu-system-x86_64 -machine accel=kvm:tcg -cpu max \
        -name guest \
        -m ${toString vm.memorySize} \
        ${concatStringsSep " " (drives ++ vm.qemu.options)} \
        $QEMU_OPTS \
        "$@"
    '';
  };
}
