# microvm.nix guests whose store disk is never built. To be imported beside microvm.nix' own module; does nothing where
# the host's /nix/store is shared (microvm.storeOnDisk is false then).
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) mkForce mkIf mkOption optionals types;

  inherit (config) microvm;
  inherit (config.networking) hostName;
  cfg = microvm.lazystore;
  hostPkgs = microvm.vmHostPackages;
  isQemu = microvm.hypervisor == "qemu";

  closure = import ./store-closure.nix {
    inherit pkgs;
    rootPaths = [ config.system.build.toplevel ];
  };

  # As all of microvm.nix' sockets, in the directory that the VM is started in; a relative path is never too long.
  socket = "${hostName}-lazystore.sock";

  # microvm.nix makes its disks PCI devices or MMIO devices by the same rule. The store's disk must be of the same kind:
  # others are mounted as /dev/vdb, /dev/vdc ..., and the two kinds are not found in a fixed order.
  pci =
    microvm.graphics.enable
    || !(lib.hasPrefix "microvm" microvm.qemu.machine)
    || microvm.shares != [ ]
    || lib.any (device: device.bus == "pci") microvm.devices;

  # With shares there is a shared memory backend already.
  sharedMemory = optionals (microvm.shares == [ ]) [
    "-object"
    "memory-backend-memfd,id=lazystore,size=${toString microvm.mem}M,share=on"
    "-machine"
    "memory-backend=lazystore"
  ];

  device =
    if pci then
      [ "-device" "vhost-user-blk-pci,chardev=lazystore,disable-legacy=on" ]
    else
      [ "-global" "virtio-mmio.force-legacy=false" "-device" "vhost-user-blk,chardev=lazystore" ];

  # A worker of lazystore's that dies is replaced: QEMU shall connect again after a second.
  reconnect =
    if builtins.compareVersions microvm.qemu.package.version "9.2" < 0 then "reconnect=1" else "reconnect-ms=1000";

  # The first disk is mounted by its label, but the others by their letters, and microvm.nix leaves the first letter to
  # the store. So that letter stays taken.
  noDisk = pkgs.runCommand "no-store-disk" { } "truncate --size=4096 $out";

  transport =
    if isQemu then
      "--vhost-user ${lib.escapeShellArg socket}"
    else
      "--fuse ${lib.escapeShellArg cfg.mountPoint}";

  # The hypervisor is exec'ed by the shell that runs this, so the server's parent is the hypervisor: it gets SIGTERM when
  # that ends, in whatever way. The server's first line says that it is ready.
  start = ''
    ${lib.optionalString (!isQemu) ''
      mkdir -p ${lib.escapeShellArg cfg.mountPoint}
      # Users other than root mount through fusermount3.
      PATH=/run/wrappers/bin:$PATH
    ''}
    exec {lazystore}< <(
      exec ${hostPkgs.util-linux}/bin/setpriv --pdeathsig TERM ${cfg.package}/bin/lazystore serve \
        --closure-info ${closure} --store-dir ${builtins.storeDir} ${transport}
    )
    read -r _ <&$lazystore || { echo 'The store disk is not served: see what lazystore said.' >&2; exit 1; }
    exec {lazystore}<&-
  '';
in
{
  options.microvm.lazystore = {
    package = mkOption {
      type = types.package;
      default = hostPkgs.lazystore or (hostPkgs.callPackage ./package.nix { });
      defaultText = lib.literalExpression "config.microvm.vmHostPackages.lazystore";
      description = "The lazystore that serves the store disk.";
    };
    mountPoint = mkOption {
      type = types.path;
      default = "/var/lib/microvms/${hostName}/lazystore";
      defaultText = lib.literalExpression ''"/var/lib/microvms/''${config.networking.hostName}/lazystore"'';
      description = ''
        Directory on the host that the store disk is mounted in as a file, for hypervisors other than QEMU. The user who
        runs the hypervisor must be able to make it.
      '';
    };
  };

  config = mkIf (microvm.guest.enable && microvm.storeOnDisk) {
    assertions = [
      {
        assertion = microvm.hypervisor != "vfkit";
        message = "MicroVM ${hostName}: lazystore needs a Linux host, and vfkit has none.";
      }
      {
        assertion = isQemu -> microvm.hotplugMem == 0;
        message = "MicroVM ${hostName}: memory that is plugged in (microvm.hotplugMem) is not shared with lazystore; use microvm.mem.";
      }
    ];

    microvm = {
      storeDiskType = "erofs";
      storeDisk = mkForce (if isQemu then noDisk else "${cfg.mountPoint}/nix-store.img");
      preStart = start;
      qemu.extraArgs = mkIf isQemu (
        sharedMemory ++ [ "-chardev" "socket,id=lazystore,path=${socket},${reconnect}" ] ++ device
      );
    };
  };
}
