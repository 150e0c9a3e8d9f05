# Adds `lazystore` to nixpkgs.
final: _prev: { lazystore = final.callPackage ./package.nix { }; }
