# The program, from Cargo.lock: `callPackage ./package.nix { }`. Needs a nixpkgs with Rust 1.95.
{
  lib,
  stdenv,
  buildPackages,
  rustPlatform,
  installShellFiles,
}:

let
  manifest = (lib.importTOML ../Cargo.toml).package;
in
rustPlatform.buildRustPackage {
  pname = manifest.name;
  inherit (manifest) version;

  # Only the files that the build needs, so that a change of another script or of this directory rebuilds nothing.
  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../Cargo.toml
      ../Cargo.lock
      ../src
      ../scripts/qemu
      ../scripts/systemd
    ];
  };
  cargoLock.lockFile = ../Cargo.lock;

  # The tests (scripts/test) need QEMU, a kernel to boot, root and /dev/fuse, which a build sandbox lacks.
  doCheck = false;

  nativeBuildInputs = [ installShellFiles ];

  # The program prints its own completions and manual pages. When cross-compiling, an emulator runs it.
  postInstall =
    let
      run = "${stdenv.hostPlatform.emulator buildPackages} $out/bin/${manifest.name}";
    in
    ''
      install -D --mode=444 --target-directory=$out/lib/systemd/system scripts/systemd/*
      install -D --mode=444 --target-directory=$out/share/qemu/vhost-user scripts/qemu/50-lazystore.json
      install -D --mode=555 --target-directory=$out/libexec/lazystore scripts/qemu/vhost-user-blk
      substituteInPlace $out/lib/systemd/system/*.service --replace-fail /usr/bin/ $out/bin/
      substituteInPlace $out/libexec/lazystore/vhost-user-blk --replace-fail /usr/bin/ $out/bin/
      substituteInPlace $out/share/qemu/vhost-user/50-lazystore.json --replace-fail /usr/libexec/ $out/libexec/
    ''
    + lib.optionalString (stdenv.hostPlatform.emulatorAvailable buildPackages) ''
      mkdir pages
      ${run} man --dir pages
      installManPage pages/*
      for shell in bash zsh fish; do
        ${run} completions $shell >completions.$shell
      done
      installShellCompletion --cmd ${manifest.name} --bash completions.bash --zsh completions.zsh --fish completions.fish
    '';

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
