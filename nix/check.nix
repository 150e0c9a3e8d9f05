# A NixOS test: the host's store must not leak into a VM, and the guest's Nix must know its closure. A guest can see a store
# path that it does not refer to only through a file system shared over virtio (9p, virtiofs). pv is such a path: the test
# script refers to it, the guests do not.
{ hostPkgs, ... }:

let
  isolated = type: {
    imports = [ ./qemu-vm.nix ];
    virtualisation.qemu.isolation = {
      nixStoreFilesystemType = type;
      # Without other shares, any virtio file system in the guest must be the store.
      keepSharedDirectories = false;
    };
  };
in
{
  name = "lazystore-store-isolation";

  # Otherwise every guest would contain the paths that the script refers to.
  includeTestScriptReferences = false;

  nodes = {
    shared = { };
    private = isolated "ext4";
    privateErofs = isolated "erofs";
    lazy = isolated "lazy";
    lazyReadOnly = {
      imports = [ (isolated "lazy") ];
      virtualisation.writableStore = false;
    };
    # The defaults.
    lazyWithShares = ./qemu-vm.nix;
  };

  testScript = ''
    import tempfile

    isolated = [private, privateErofs, lazy, lazyReadOnly]
    writable = [private, privateErofs, lazy, lazyWithShares]

    def assert_isolated(machine):
        machine.wait_for_unit("multi-user.target")
        machine.fail("mount | grep virt")
        machine.fail("test -e ${hostPkgs.pv}")

    start_all()
    shared.wait_for_unit("multi-user.target")
    shared.succeed("mount | grep virt")
    shared.succeed("test -e ${hostPkgs.pv}")
    for machine in isolated:
        assert_isolated(machine)
    lazyWithShares.wait_for_unit("multi-user.target")
    lazyWithShares.fail("test -e ${hostPkgs.pv}")

    with subtest("the guest's Nix knows its closure"):
        for machine in writable:
            machine.succeed("nix-store --verify-path $(readlink -f /run/current-system)")
            machine.succeed("nix-store -q --references /run/current-system | grep -q linux")

    with subtest("the disk is where the option says, and cannot be written"):
        lazy.succeed("findmnt --types erofs /nix/.ro-store")
        lazyReadOnly.succeed("findmnt --types erofs /nix/store")
        for machine in isolated:
            machine.succeed("test $(lsblk --noheadings --output RO /dev/disk/by-label/nix-store) = 1")
        for machine in writable:
            machine.succeed("touch /nix/store/written && rm /nix/store/written")

    with subtest("the store's root looks like a directory, and the disks have the letters that they have without it"):
        for machine in isolated:
            mode = "555" if machine in [lazy, lazyReadOnly] else "755"
            store = "/nix/store" if machine is lazyReadOnly else "/nix/.ro-store"
            machine.succeed(f"test $(stat -c %a {store}) = {mode}")
            machine.succeed("test $(readlink -f /dev/disk/by-label/nixos) = /dev/vda")
            machine.succeed("test $(readlink -f /dev/disk/by-label/nix-store) = /dev/vdb")

    with subtest("files can be exchanged with a VM that keeps its shares"):
        with tempfile.NamedTemporaryFile("w") as file:
            file.write("from the host")
            file.flush()
            lazyWithShares.copy_from_host(file.name, "/tmp/copied")
        lazyWithShares.succeed("grep -qx 'from the host' /tmp/copied")

    with subtest("a VM that is started again has its disk again"):
        lazy.shutdown()
        lazy.start()
        assert_isolated(lazy)
        lazy.crash()
        lazy.start()
        assert_isolated(lazy)
  '';
}
