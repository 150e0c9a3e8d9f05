# Stands where nixpkgs has it, relative to modulesPath: an image that only says what it was asked for.
{
  pkgs,
  lib,
  config,
  additionalPaths,
  ...
}@arguments:
pkgs.runCommand "nixos-disk-image" { } "mkdir $out; touch $out/nixos.img"
// {
  asked = removeAttrs arguments [ "pkgs" "lib" "config" "additionalPaths" ];
  inherit additionalPaths;
}
