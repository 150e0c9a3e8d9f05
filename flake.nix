{
  description = "A virtual machine's /nix/store as a read-only EROFS disk that is never built";

  # There is no flake.lock, so this input is not pinned. A flake that uses this one as an input pins it in its own lock file;
  # `nix run` uses the newest nixos-unstable.
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      each = make: lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (
        system: make (import ./nix { pkgs = nixpkgs.legacyPackages.${system}; })
      );

      # The flake's own package, because a user's nixpkgs may lack the Rust version that the package needs.
      packageFor = hostPkgs: lib.mkDefault self.packages.${hostPkgs.stdenv.hostPlatform.system}.lazystore;
      qemuVm =
        { config, ... }:
        {
          imports = [ ./nix/qemu-vm.nix ];
          virtualisation.qemu.isolation.package = packageFor config.virtualisation.host.pkgs;
        };
      microvm =
        { config, pkgs, ... }:
        {
          imports = [ ./nix/microvm.nix ];
          microvm.lazystore.package = packageFor (config.microvm.vmHostPackages or pkgs);
        };
      host =
        { pkgs, ... }:
        {
          imports = [ ./nix/host.nix ];
          services.lazystore.package = packageFor pkgs;
        };
    in
    {
      packages = each (ours: {
        inherit (ours) lazystore;
        default = ours.lazystore;
      });
      overlays.default = import ./nix/overlay.nix;
      nixosModules = {
        default = qemuVm;
        inherit host microvm;
      };
      testModules.default = import ./nix/test.nix { nodeModule = qemuVm; };
      checks = each (ours: ours.checks // { inherit (ours) lazystore; });
    };
}
