# As much of NixOS' options for systemd as nix/host.nix defines.
{ lib, ... }:

let
  inherit (lib) mkOption types;

  option = type: default: mkOption { inherit type default; };
  strings = option (types.listOf types.str) [ ];
  sections = option (types.attrsOf types.raw) { };

  unit = {
    overrideStrategy = option (types.enum [ "asDropin" "asDropinIfExists" ]) "asDropinIfExists";
    wantedBy = strings;
  };
in
{
  options = {
    assertions = option (types.listOf types.raw) [ ];
    systemd = {
      packages = option (types.listOf types.package) [ ];
      services = option (types.attrsOf (
        types.submodule {
          options = unit // {
            restartIfChanged = option types.bool true;
            serviceConfig = sections;
          };
        }
      )) { };
      sockets = option (types.attrsOf (types.submodule { options = unit // { socketConfig = sections; }; })) { };
    };
  };
}
