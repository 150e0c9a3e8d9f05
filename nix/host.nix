# Disks that a NixOS host serves to its VMs, with one systemd unit per disk. The units and their hardening come from the
# package; this module adds drop-ins that set the closure and the socket.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) concatStringsSep literalExpression mapAttrs' mapAttrsToList mkIf mkOption nameValuePair optional optionals types;

  cfg = config.services.lazystore;

  disk.options = {
    closure = mkOption {
      type = types.listOf types.package;
      example = literalExpression "[ guest.config.system.build.toplevel ]";
      description = "Store paths. The disk contains these and everything they refer to.";
    };
    socket = mkOption {
      type = types.nullOr types.path;
      default = null;
      defaultText = literalExpression ''"/run/lazystore/''${name}.sock"'';
      description = "The vhost-user socket that VMs connect to.";
    };
    group = mkOption {
      type = types.str;
      default = "kvm";
      description = "Group whose members may connect.";
    };
    mode = mkOption {
      type = types.str;
      default = "0660";
      description = "Permissions of the socket, octal. Write permission lets a program connect.";
    };
    registration = mkOption {
      type = types.bool;
      default = true;
      description = "Whether the disk contains the closure's registration, for the guest's `nix-store --load-db`.";
    };
    keepPlans = mkOption {
      type = types.bool;
      default = true;
      description = ''
        Whether to keep what was found in store paths in /var/cache/lazystore/<name>, so that a restarted server lists no
        directories and reads no small files again.
      '';
    };
    extraArgs = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "--label" "store" ];
      description = "Additional options of `lazystore serve`.";
    };
  };

  socketOf = name: one: if one.socket == null then "/run/lazystore/${name}.sock" else toString one.socket;

  # systemd uses C quoting, and additionally expands % and $.
  quote = argument: builtins.replaceStrings [ "%" "$" ] [ "%%" "$$" ] (builtins.toJSON argument);

  serve =
    name: one:
    [
      "serve"
      "--closure-info"
      "${pkgs.closureInfo { rootPaths = one.closure; }}"
      "--store-dir"
      builtins.storeDir
    ]
    ++ optional one.registration "--with-registration"
    # The directory is made by the package's unit (CacheDirectory=).
    ++ optionals one.keepPlans [ "--plan-dir" "/var/cache/lazystore/${name}" ]
    ++ one.extraArgs;

  # An empty value removes the values of the package's unit.
  service =
    name: one:
    nameValuePair "lazystore@${name}" {
      overrideStrategy = "asDropin";
      # A restart with another closure would replace the disk of running VMs, so the administrator restarts the service.
      restartIfChanged = false;
      serviceConfig = {
        EnvironmentFile = [ "" ];
        ExecStart = [
          ""
          "${cfg.package}/bin/lazystore ${concatStringsSep " " (map quote (serve name one))}"
        ];
      };
    };

  socket =
    name: one:
    nameValuePair "lazystore@${name}" {
      overrideStrategy = "asDropin";
      wantedBy = [ "sockets.target" ];
      socketConfig = {
        ListenStream = [ "" (socketOf name one) ];
        SocketGroup = one.group;
        SocketMode = one.mode;
      };
    };

  check = name: one: [
    {
      assertion = builtins.match "[A-Za-z0-9_.-]+" name != null;
      message = "services.lazystore.disks.\"${name}\": a name has only letters, digits and _.-, as it is part of a unit's name.";
    }
    {
      assertion = builtins.stringLength (socketOf name one) <= 107;
      message = "services.lazystore.disks.${name}.socket is longer than the 107 bytes that Linux allows.";
    }
    {
      assertion = one.closure != [ ];
      message = "services.lazystore.disks.${name}.closure is empty: name at least one store path.";
    }
  ];
in
{
  options.services.lazystore = {
    package = mkOption {
      type = types.package;
      default = pkgs.lazystore or (pkgs.callPackage ./package.nix { });
      defaultText = literalExpression "pkgs.lazystore";
      description = "The lazystore that serves the disks, and whose systemd units are used.";
    };
    disks = mkOption {
      type = types.attrsOf (types.submodule disk);
      default = { };
      example = literalExpression "{ web.closure = [ guest.config.system.build.toplevel ]; }";
      description = ''
        Store disks for VMs on this host. Each has a socket, created at boot, and a service that starts when the first VM
        connects.
      '';
    };
  };

  config = mkIf (cfg.disks != { }) {
    assertions = builtins.concatLists (mapAttrsToList check cfg.disks);
    systemd.packages = [ cfg.package ];
    systemd.services = mapAttrs' service cfg.disks;
    systemd.sockets = mapAttrs' socket cfg.disks;
  };
}
