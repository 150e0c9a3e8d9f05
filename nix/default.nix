# Everything that the flake exports, without flakes: `nix-build nix -A lazystore`, or `(import ./nix { }).nixosModules.default`.
{
  pkgs ? import <nixpkgs> { },
}:

{
  lazystore = pkgs.callPackage ./package.nix { };
  overlay = import ./overlay.nix;
  nixosModules = {
    default = ./qemu-vm.nix;
    microvm = ./microvm.nix;
    host = ./host.nix;
  };
  testModules.default = import ./test.nix { };
  checks.store-isolation = pkgs.testers.runNixOSTest ./check.nix;
}
