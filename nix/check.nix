# A NixOS test: does the host's store leak into a VM? Only files shared over virtio (9p) show a guest a path that nothing
# in it refers to. pv is such a path: the test script names it, the guests do not.
{ hostPkgs, ... }:

let
  isolated = type: {
    imports = [ ./qemu-vm.nix ];
    virtualisation.qemu.isolation.nixStoreFilesystemType = type;
  };
in
{
  name = "lazystore-store-isolation";

  # Else what the script names would be added to every guest.
  includeTestScriptReferences = false;

  nodes = {
    shared = { };
    private = isolated "ext4";
    privateErofs = isolated "erofs";
    lazy = ./qemu-vm.nix;
    lazyReadOnly = {
      imports = [ ./qemu-vm.nix ];
      virtualisation.writableStore = false;
    };
  };

  testScript = ''
    isolated = [private, privateErofs, lazy, lazyReadOnly]

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

    with subtest("the disk is where the option says, and cannot be written"):
        lazy.succeed("findmnt --types erofs /nix/.ro-store")
        lazyReadOnly.succeed("findmnt --types erofs /nix/store")
        for machine in [lazy, lazyReadOnly]:
            machine.succeed("test $(lsblk --noheadings --output RO /dev/disk/by-label/nix-store) = 1")
        lazy.succeed("touch /nix/store/written && rm /nix/store/written")

    with subtest("a VM that is started again has its disk again"):
        lazy.shutdown()
        lazy.start()
        assert_isolated(lazy)
        lazy.crash()
        lazy.start()
        assert_isolated(lazy)
  '';
}
