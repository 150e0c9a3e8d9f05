# As much of nixpkgs as the modules in nix/ use, from what the machine has. Its derivations are really built, with the
# machine's programs: the sandbox must be off.
{
  # Programs of the host: the lazystore under test, and what the VM's script shall start.
  lazystore ? "/nowhere/lazystore",
  qemu ? "/nowhere/qemu-system-x86_64",
  mkfsErofs ? "/nowhere/mkfs.erofs",
  isLinux ? true,
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
      // removeAttrs attributes [ "meta" "passthru" ]
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

  hostPlatform = {
    inherit isLinux;
    isDarwin = !isLinux;
  };
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

  stdenv = {
    inherit hostPlatform;
  };

  lazystore = programs "lazystore" [ lazystore ];
  util-linux = programs "util-linux" [ "/usr/bin/setpriv" ];
  gnutar = programs "gnutar" [ "/bin/tar" ];
  erofs-utils = programs "erofs-utils" [ mkfsErofs ];
  e2fsprogs = programs "e2fsprogs" [ "/sbin/mke2fs" "/sbin/mkfs.ext4" "/sbin/resize2fs" "/sbin/debugfs" "/sbin/dumpe2fs" "/sbin/e2fsck" ];
  fakeroot = programs "fakeroot" [ "/usr/bin/fakeroot" ];
  virtiofsd = programs "virtiofsd" [ (toString ./fake/virtiofsd) ];

  # With a file next to its programs, as the firmware is.
  qemu =
    runCommand "qemu" { } ''
      mkdir -p $out/bin $out/share/qemu
      ln -s ${qemu} $out/bin/qemu-system-x86_64
      ln -s /usr/bin/qemu-img $out/bin/
      touch $out/share/qemu/bios.bin
    ''
    // {
      stdenv = {
        inherit hostPlatform;
      };
      version = "7.2";
    };

  # Stands for two hypervisors that are not here.
  cloud-hypervisor = programs "cloud-hypervisor" [ (toString ./fake/cloud-hypervisor) ] // { version = "50.0"; };
  crosvm = programs "crosvm" [ (toString ./fake/crosvm) ] // { version = "120"; };

  # What a guest is made of: a static program, a path that it refers to, and the machine's Nix with its libraries. And
  # what nothing refers to.
  guest =
    let
      message = runCommand "message" { } "echo 'read in the guest' >$out";
      nix = runCommand "nix" { } ''
        mkdir -p $out/bin $out/lib
        cp "$(readlink -f /usr/bin/nix)" $out/lib/nix
        ldd /usr/bin/nix | sed -n 's/.*=> \(.*\) (.*/\1/p' | xargs cp --dereference --target-directory=$out/lib
        cp --dereference /lib64/ld-linux-x86-64.so.2 $out/lib/ld.so
        printf '#!/bin/sh\nexec %s/lib/ld.so --library-path %s/lib --argv0 nix-store %s/lib/nix "$@"\n' $out $out $out >$out/bin/nix-store
        chmod 755 $out/bin/nix-store
      '';
    in
    runCommand "guest" { } ''
      mkdir -p $out/bin
      cp /bin/busybox $out/bin/
      ln -s ${message} $out/message
      ln -s ${nix}/bin/nix-store $out/bin/nix-store
    '';
  pv = runCommand "pv" { } "echo 'not for guests' >$out";
}
