# For NixOS tests: all VMs of a test have a store of their own, and the paths that the test script names are in it, as
# nixpkgs does it for virtualisation.useNixStoreImage. To be imported by a test, not by a node:
# imports = [ (import ./test.nix { }) ];
{
  nodeModule ? ./qemu-vm.nix,
}:
test@{
  hostPkgs,
  lib,
  ...
}:

let
  # What the test script names must not depend on what it names: hence the nodes of nixpkgs' parallel universe, which do
  # without it.
  arguments = {
    nodes = test.config.withoutTestScriptReferences.nodesCompat;
  }
  // lib.optionalAttrs (test.config.withoutTestScriptReferences ? containers) {
    inherit (test.config.withoutTestScriptReferences) containers;
  };

  inherit (test.config) testScript;
  script = if lib.isFunction testScript then testScript arguments else testScript;

  references = lib.optional (
    test.config.includeTestScriptReferences && builtins.hasContext script
  ) (hostPkgs.writeStringReferencesToFile script);

  node =
    { config, ... }:
    {
      imports = [ nodeModule ];
      # With an image of nixpkgs' own they are there already.
      virtualisation.additionalPaths = lib.optionals (!config.virtualisation.useNixStoreImage) references;
    };
in
{
  # Only VMs have such a store; tests of older nixpkgs have no containers, and one option for all of their machines.
  config = if test.options ? nodeDefaults then { nodeDefaults = node; } else { defaults = node; };
}
