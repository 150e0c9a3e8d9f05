# microvm.nix guests whose store disk is never built. To be imported next to microvm.nix' own module; does nothing where
# the host's /nix/store is shared (microvm.storeOnDisk is false then).
{
  config,
  lib,
  options,
  pkgs,
  ...
}:

let
  inherit (lib) mkBefore mkForce mkIf mkOption optionalString optionals types;

  inherit (config) microvm;
  inherit (config.networking) hostName;
  cfg = microvm.lazystore;
  # microvm.nix has this option since August 2025, and those for the hypervisors' packages since February 2026.
  hostPkgs = if options.microvm ? vmHostPackages then microvm.vmHostPackages else pkgs;
  hasPackage = hypervisor: options.microvm ? ${hypervisor} && options.microvm.${hypervisor} ? package && options.microvm.${hypervisor}.package ? default;

  # How the disk gets to the VM.
  isQemu = microvm.hypervisor == "qemu"; # a socket that its arguments name
  isWrapped = lib.elem microvm.hypervisor wrapped && hasPackage microvm.hypervisor; # a socket, by `lazystore run`
  isFile = !isQemu && !isWrapped; # a file in a FUSE mount
  wrapped = [ "cloud-hypervisor" "crosvm" ];

  active = microvm.guest.enable && microvm.storeOnDisk;

  closure = pkgs.closureInfo { rootPaths = [ config.system.build.toplevel ]; };

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
    let
      qemu = if hasPackage "qemu" then microvm.qemu.package else hostPkgs.qemu_kvm;
    in
    if builtins.compareVersions qemu.version "9.2" < 0 then "reconnect=1" else "reconnect-ms=1000";

  # The first disk is mounted by its label, but the others by their letters, and microvm.nix leaves the first letter to
  # the store. So that letter stays taken.
  noDisk = pkgs.runCommand "no-store-disk" { } "truncate --size=4096 $out";

  # A relative path for the shell, which stays in the directory that the VM is started in.
  mountDir = lib.removePrefix "/proc/self/cwd/" cfg.mountPoint;

  # Within double quotes.
  absolute = path: if lib.hasPrefix "/" path then path else "$(pwd -P)/${path}";

  transport =
    if isQemu then
      "--vhost-user ${lib.escapeShellArg socket}"
    else
      "--fuse ${lib.escapeShellArg mountDir}";

  # Users other than root mount through fusermount3, which must be a wrapper with root's rights.
  prepareMount = ''
    # What a server that was killed has left mounted cannot be looked at, and is replaced by the new one.
    if ! mkdir -p ${lib.escapeShellArg mountDir} && [[ $(</proc/self/mounts) != *" ${absolute mountDir} "* ]]; then
      echo ${lib.escapeShellArg "The store disk needs the directory ${mountDir}, which cannot be made here: see microvm.lazystore.mountPoint."} >&2
      exit 1
    fi
    PATH=/run/wrappers/bin:$PATH
    if [ "$(id -u)" != 0 ] && ! [ -u "$(command -v fusermount3)" ]; then
      echo 'The store disk is a FUSE mount, and this host lets only root mount: set programs.fuse.enable = true on the host.' >&2
      exit 1
    fi
  '';

  # The hypervisor is exec'ed by the shell that runs this, so the server's parent is the hypervisor: it gets SIGTERM when
  # that ends, in whatever way. The server's first line says that it is ready. systemd must not hear it from there: it is
  # told by the VM, if at all, and the unit would be active before the VM boots.
  start = ''
    ${optionalString isFile prepareMount}
    exec {lazystore}< <(
      unset NOTIFY_SOCKET
      exec ${hostPkgs.util-linux}/bin/setpriv --pdeathsig TERM ${cfg.package}/bin/lazystore serve \
        --closure-info ${closure} --with-registration --store-dir ${builtins.storeDir} ${transport}
    )
    read -r _ <&$lazystore || { echo 'The store disk is not served: see what lazystore said.' >&2; exit 1; }
    exec {lazystore}<&-
    ${optionalString (isQemu && microvm.user != null) ''
      # QEMU becomes this user, and must be able to connect again.
      if [ "$(id -u)" = 0 ]; then
        chown ${lib.escapeShellArg microvm.user} ${lib.escapeShellArg socket}
      fi
    ''}
  '';

  withStore =
    package:
    import ./vmm-with-store.nix {
      inherit hostPkgs closure;
      lazystore = cfg.package;
    } package;
in
{
  options.microvm = {
    lazystore = {
      package = mkOption {
        type = types.package;
        default = hostPkgs.lazystore or (hostPkgs.callPackage ./package.nix { });
        defaultText = lib.literalExpression "config.microvm.vmHostPackages.lazystore";
        description = "The lazystore that serves the store disk.";
      };
      mountPoint = mkOption {
        type = types.path;
        default = "/proc/self/cwd/${hostName}-lazystore";
        defaultText = lib.literalExpression ''"/proc/self/cwd/''${config.networking.hostName}-lazystore"'';
        description = ''
          Directory on the host that the store disk is mounted in as a file, for hypervisors that read one (Firecracker,
          kvmtool, stratovirt, alioth). The user who runs the hypervisor must be able to make it. `/proc/self/cwd` is
          the directory that the VM is started in.
        '';
      };
    };
  }
  // lib.genAttrs wrapped (hypervisor: {
    package = mkOption {
      apply = package: if active && microvm.hypervisor == hypervisor then withStore package else package;
    };
  });

  config = mkIf active {
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

    # By its name: profiles such as hardened.nix blacklist it, and then the kernel does not load it by itself.
    boot.initrd.kernelModules = [ "erofs" ];

    microvm = {
      # There is nothing to compress, so that a choice of squashfs has no meaning here.
      storeDiskType = mkForce "erofs";
      storeDisk = mkForce (if isFile then "${cfg.mountPoint}/nix-store.img" else noDisk);
      preStart = mkIf (!isWrapped) start;
      qemu.extraArgs = mkIf isQemu (
        sharedMemory ++ [ "-chardev" "socket,id=lazystore,path=${socket},${reconnect}" ] ++ device
      );

      # What the guest loads into its Nix database; microvm.nix' own comes after it, and is not on the disk.
      kernelParams = mkIf (microvm.registerClosure or true) (
        mkBefore [ "regInfo=/nix/store/.lazystore/registration" ]
      );
    };
  };
}
