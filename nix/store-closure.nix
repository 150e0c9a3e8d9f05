# closureInfo of what a guest's store shall hold: the closure of `rootPaths` and its registration. The registration is
# the path that qemu-vm.nix and microvm.nix name on the kernel's command line (`regInfo=`), so that the guest can load it
# into its Nix database; it is therefore made in the same way as there.
{ pkgs, rootPaths }:

pkgs.closureInfo { rootPaths = rootPaths ++ [ (pkgs.closureInfo { inherit rootPaths; }) ]; }
