# The program, from Cargo.lock: `callPackage ./package.nix { }`. Needs a nixpkgs with Rust 1.95.
{ lib, rustPlatform }:

let
  manifest = (lib.importTOML ../Cargo.toml).package;
in
rustPlatform.buildRustPackage {
  pname = manifest.name;
  inherit (manifest) version;

  # What cargo needs and no more, so that a change of a script or of this directory builds nothing anew.
  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../Cargo.toml
      ../Cargo.lock
      ../src
    ];
  };
  cargoLock.lockFile = ../Cargo.lock;

  # The tests want QEMU, a kernel to boot, root and /dev/fuse, which a build sandbox lacks: scripts/test.
  doCheck = false;

  meta = {
    inherit (manifest) description;
    license = with lib.licenses; [
      mit
      asl20
    ];
    mainProgram = manifest.name;
    platforms = lib.platforms.linux;
  };
}
