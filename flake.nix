{
  description = "A virtual machine's /nix/store as a read-only EROFS disk that is never built";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      each = make: nixpkgs.lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (
        system: make (import ./nix { pkgs = nixpkgs.legacyPackages.${system}; })
      );
    in
    {
      packages = each (ours: {
        inherit (ours) lazystore;
        default = ours.lazystore;
      });
      overlays.default = import ./nix/overlay.nix;
      nixosModules = {
        default = ./nix/qemu-vm.nix;
        microvm = ./nix/microvm.nix;
      };
      checks = each (ours: ours.checks // { inherit (ours) lazystore; });
    };
}
