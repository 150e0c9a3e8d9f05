# As much of nixpkgs as the modules in nix/ use, from what the machine has. Its derivations are really built, with the
# machine's programs: the sandbox must be off.
{
  # Programs of the host: the lazystore under test, and what the VM's script shall start.
  lazystore ? "/nowhere/lazystore",
  qemu ? "/nowhere/qemu-system-x86_64",
}:

let
  # Nix takes the end of the log for the end of the builder, and kills what is left of it; a builder that is just exiting
  # has closed its log already, and then counts as killed. So the log stays open until it has exited.
  keepLogOpen = ''
    (until [[ ! -e /proc/$$ || $(</proc/$$/stat) == *') Z '* ]]; do /bin/sleep 0.01; done) 3>&2 >/dev/null 2>&1 &
  '';

  runCommand =
    name: attributes: script:
    derivation (
      {
        inherit name;
        system = builtins.currentSystem;
        builder = "/bin/bash";
        args = [ "-euo" "pipefail" "-c" (keepLogOpen + script) ];
        PATH = "/usr/bin:/bin:/usr/sbin:/sbin";
      }
      // removeAttrs attributes [ "meta" ]
    );

  # A package with programs of the host.
  programs =
    name: commands:
    runCommand name { } ''
      mkdir -p $out/bin
      ${builtins.concatStringsSep "\n" (map (command: "ln -s ${command} $out/bin/") commands)}
    '';

  # The paths that `roots` refer to, with their NAR sizes, as Nix knows them while it builds.
  graph =
    roots:
    derivation {
      name = "graph";
      system = builtins.currentSystem;
      __structuredAttrs = true;
      exportReferencesGraph.closure = roots;
      builder = "/bin/bash";
      args = [ "-ec" "${keepLogOpen}. ./.attrs.sh; /bin/cp .attrs.json \${outputs[out]}" ];
    };

  closureInfo =
    { rootPaths }:
    let
      known = graph rootPaths;
      inherit (builtins.fromJSON (builtins.unsafeDiscardStringContext (builtins.readFile known))) closure;
      lines = builtins.concatStringsSep "\n";
      record =
        entry:
        lines (
          [ entry.path entry.narHash (toString entry.narSize) "" (toString (builtins.length entry.references)) ]
          ++ entry.references
        );
    in
    runCommand "closure-info" {
      inherit known;
      paths = lines (map (entry: entry.path) closure);
      records = lines (map record closure);
    } ''
      mkdir $out
      echo "$paths" >$out/store-paths
      echo "$records" >$out/registration
    '';
in
{
  inherit runCommand closureInfo;

  runtimeShell = "/bin/bash";
  writeShellScript =
    name: text:
    runCommand name { inherit text; } ''
      printf '#!/bin/bash\n%s\n' "$text" >$out
      chmod 755 $out
    ''
    // { inherit text; };

  stdenv.hostPlatform.isLinux = true;

  lazystore = programs "lazystore" [ lazystore ];
  util-linux = programs "util-linux" [ "/usr/bin/setpriv" ];
  gnutar = programs "gnutar" [ "/bin/tar" ];
  erofs-utils = programs "erofs-utils" [ "/usr/bin/mkfs.erofs" ];

  # With a file beside its programs, as the firmware is.
  qemu =
    runCommand "qemu" { } ''
      mkdir -p $out/bin $out/share/qemu
      ln -s ${qemu} $out/bin/qemu-system-x86_64
      ln -s /usr/bin/qemu-img $out/bin/
      touch $out/share/qemu/bios.bin
    ''
    // {
      stdenv.hostPlatform.isLinux = true;
      version = "7.2";
    };

  # What a guest is made of: a static program and a path that it refers to. And what nothing refers to.
  guest =
    let
      message = runCommand "message" { } "echo 'read in the guest' >$out";
    in
    runCommand "guest" { } ''
      mkdir -p $out/bin
      cp /bin/busybox $out/bin/
      ln -s ${message} $out/message
    '';
  pv = runCommand "pv" { } "echo 'not for guests' >$out";
}
