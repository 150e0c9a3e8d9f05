# For NixOS tests: gives all VMs of a test their own store, which includes the paths that the test script refers to, as nixpkgs
# does for virtualisation.useNixStoreImage. Import this in a test, not in a node:
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
  # The paths that the test script refers to must not depend on themselves. So the script is evaluated with nixpkgs' second set
  # of nodes, which do not include them.
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
      # nixpkgs' own image already contains them.
      virtualisation.additionalPaths = lib.optionals (!config.virtualisation.useNixStoreImage) references;
    };
in
{
  # Only VMs have such a store, not containers. Older nixpkgs has no containers, and one option for all machines.
  config = if test.options ? nodeDefaults then { nodeDefaults = node; } else { defaults = node; };
}
