# microvm.nix guests whose store disk is never built. Import this next to microvm.nix' own module. It does nothing if the
# guest shares the host's /nix/store (microvm.storeOnDisk is then false).
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

  # How the disk is attached to the VM.
  isQemu = microvm.hypervisor == "qemu"; # a socket that QEMU's arguments name
  isWrapped = lib.elem microvm.hypervisor wrapped && hasPackage microvm.hypervisor; # a socket, added by `lazystore run`
  isFile = !isQemu && !isWrapped; # a file in a FUSE mount
  wrapped = [ "cloud-hypervisor" "crosvm" ];

  active = microvm.guest.enable && microvm.storeOnDisk;

  closure = pkgs.closureInfo { rootPaths = [ config.system.build.toplevel ]; };

  # Like all of microvm.nix' sockets, in the directory that the VM is started in. A relative path avoids the length limit of
  # socket paths.
  socket = "${hostName}-lazystore.sock";

  # The rule by which microvm.nix makes its disks PCI or MMIO devices. The store's disk must be of the same kind, because the
  # others are mounted as /dev/vdb, /dev/vdc ..., and the guest finds the two kinds in no fixed order.
  pci =
    microvm.graphics.enable
    || !(lib.hasPrefix "microvm" microvm.qemu.machine)
    || microvm.shares != [ ]
    || lib.any (device: device.bus == "pci") microvm.devices;

  # With shares, microvm.nix already adds a shared memory backend.
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

  # lazystore replaces a worker that dies, so QEMU must reconnect, after a second.
  reconnect =
    let
      qemu = if hasPackage "qemu" then microvm.qemu.package else hostPkgs.qemu_kvm;
    in
    if builtins.compareVersions qemu.version "9.2" < 0 then "reconnect=1" else "reconnect-ms=1000";

  # microvm.nix mounts the store by its label and the other disks by their letters, and reserves the first letter for the
  # store. This empty disk occupies that letter.
  noDisk = pkgs.runCommand "no-store-disk" { } "truncate --size=4096 $out";

  # A path relative to the directory that the VM is started in, which is the shell's working directory.
  mountDir = lib.removePrefix "/proc/self/cwd/" cfg.mountPoint;

  # For use within double quotes.
  absolute = path: if lib.hasPrefix "/" path then path else "$(pwd -P)/${path}";

  transport =
    if isQemu then
      "--vhost-user ${lib.escapeShellArg socket}"
    else
      "--fuse ${lib.escapeShellArg mountDir}";

  # Users other than root mount through fusermount3, which must be a wrapper with root's rights.
  prepareMount = ''
    # mkdir fails on a mount that a killed server left, because stat fails there. The new server replaces such a mount.
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

  # The shell that runs this execs the hypervisor, so the hypervisor is the server's parent, and the server gets SIGTERM when
  # the hypervisor ends for any reason. The server's first line on stdout means that it is ready. The server must not notify
  # systemd: the unit would be active before the VM boots.
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
      # QEMU switches to this user, and must be able to reconnect.
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
          Directory on the host at which the store disk is mounted as a file, for hypervisors that open a file
          (Firecracker, kvmtool, stratovirt, alioth). The user who runs the hypervisor must be able to create the
          directory. `/proc/self/cwd` is the directory that the VM is started in.
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

    # Named explicitly, because profiles such as hardened.nix blacklist it, and the kernel then does not load it on demand.
    boot.initrd.kernelModules = [ "erofs" ];

    microvm = {
      # No image is built, so a choice of squashfs has no effect.
      storeDiskType = mkForce "erofs";
      storeDisk = mkForce (if isFile then "${cfg.mountPoint}/nix-store.img" else noDisk);
      preStart = mkIf (!isWrapped) start;
      qemu.extraArgs = mkIf isQemu (
        sharedMemory ++ [ "-chardev" "socket,id=lazystore,path=${socket},${reconnect}" ] ++ device
      );

      # The guest loads this file into its Nix database. microvm.nix' own regInfo follows it, and is not on the disk.
      kernelParams = mkIf (microvm.registerClosure or true) (
        mkBefore [ "regInfo=/nix/store/.lazystore/registration" ]
      );
    };
  };
}
