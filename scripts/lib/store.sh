# A small but real Nix store, for machines that have none: Debian's programs in store paths that refer to each other.
# shellcheck shell=bash
# shellcheck disable=SC2034  # used by the scripts that read this file

# package: the packages that its files are linked against. Each package follows its dependencies.
STORE_PACKAGES=(
    'libc6:'
    'libtinfo6: libc6'
    'bash: libc6 libtinfo6'
    'libpcre2-8-0: libc6'
    'libselinux1: libc6 libpcre2-8-0'
    'libattr1: libc6'
    'libacl1: libc6'
    'libgmp10: libc6'
    'coreutils: libc6 libselinux1 libpcre2-8-0 libattr1 libacl1 libgmp10'
    'grep: libc6 libpcre2-8-0'
    'sed: libc6 libselinux1 libpcre2-8-0 libacl1'
    'ncurses-base:'
)

# Sets STORE_ROOT_DIR (which contains nix/store), CLOSURE_INFO, STORE_RUN (a program and its arguments) and STORE_RUN_OUTPUT (a file
# with the expected output). The store is remade when this file changes.
prepare_store() {
    local dir
    dir=$CACHE/store-$(sha256sum <"${BASH_SOURCE[0]}" | cut -c1-12)
    cached make_store "$dir"
    STORE_ROOT_DIR=$dir/root CLOSURE_INFO=$dir/closure-info STORE_RUN=$(cat "$dir/run") STORE_RUN_OUTPUT=$dir/run-output
}

make_store() {
    [[ ! -d $1 ]] || { keep "$1"; return; }
    say 'making a small Nix store from Debian packages'
    local tmp=$1.tmp
    rm -rf "$tmp"
    declare -A STORE_PATH=()
    mkdir -p "$tmp/deb" "$tmp/tree"
    apt_refresh
    download "$tmp/deb" "${STORE_PACKAGES[@]%%:*}"
    add_packages "$tmp"
    add_corners "$tmp"
    add_top "$tmp"
    add_outsider "$tmp"
    write_closure_info "$tmp"
    rm -rf "$tmp/deb" "$tmp/tree"
    mv "$tmp" "$1"
}

# in_store ROOT OPTION...: runs nix-store on a chroot store. By default nix-bin requires the daemon's users and a sandbox; copying files into a store needs neither.
in_store() {
    local root=$1; shift
    env -u NIX_REMOTE NIX_CONFIG=$'sandbox = false\nbuild-users-group =' nix-store --store "$root" "$@"
}

# add TMP NAME REFERENCE...: adds TMP/tree/NAME to the store as the path ADDED. nix-store --add records no references, so this dumps
# the record and loads it again with the references.
add() {
    local tmp=$1 name=$2; shift 2
    ADDED=$(in_store "$tmp/root" --add "$tmp/tree/$name")
    (( $# )) || return 0
    { in_store "$tmp/root" --dump-db "$ADDED" | head -n 4; printf '%s\n' $# "$@"; } | in_store "$tmp/root" --load-db
}

# --- contents ---------------------------------------------------------------

add_packages() {
    local line package references name dependency
    for line in "${STORE_PACKAGES[@]}"; do
        package=${line%%:*} references=()
        for dependency in ${line#*:}; do
            references+=("${STORE_PATH[$dependency]}")
        done
        name=$(unpack "$1" "$package")
        [[ $package == libc6 ]] || relink "$1/tree/$name" "${references[@]}"
        add "$1" "$name" "${references[@]}"
        STORE_PATH[$package]=$ADDED
    done
}

# Prints the name of the tree: the package and its version, in characters that Nix allows. As in Nix, the tree has no usr.
unpack() {
    local deb name
    deb=$(echo "$1/deb/$2"_*.deb)
    name=$2-$(dpkg-deb -f "$deb" Version | sed 's/^[0-9]*://; s/[^0-9A-Za-z+._-]/-/g')
    dpkg -x "$deb" "$1/tree/$name"
    cp -a "$1/tree/$name/usr/." "$1/tree/$name/"
    rm -rf "$1/tree/$name"/{usr,share/man,share/locale,share/info}
    printf '%s' "$name"
}

# relink TREE LIBRARY-PATH...: makes the tree's programs use the loader and the libraries of the store. Ignores errors of patchelf,
# which fails on scripts and on programs without libraries.
relink() {
    local tree=$1 loader=${STORE_PATH[libc6]}$LOADER file rpath; shift
    rpath=$(printf ":%s/lib/$TRIPLE" "$@")
    while IFS= read -r -d '' file; do
        patchelf --print-interpreter "$file" >/dev/null 2>&1 && patchelf --set-interpreter "$loader" "$file"
        patchelf --set-rpath "${rpath#:}" "$file" 2>/dev/null || true
    done < <(find "$tree/bin" "$tree/lib/$TRIPLE" -type f -print0 2>/dev/null)
}
TRIPLE=x86_64-linux-gnu
LOADER=/lib/$TRIPLE/ld-linux-x86-64.so.2

# Files that no package contains: sizes around a block, unusual names, long symlink targets, empty and large directories.
add_corners() {
    local dir=$1/tree/corners size long i
    mkdir -p "$dir"/{empty,'with space',deep/a/b/c/d/e/f/g,many}
    for size in 0 1 59 60 700 1023 1024 1025 2047 2048 2049 4095 4096 4097 8191 8192 8193 131072 1048577; do
        yes "$size" | head -c "$size" >"$dir/size-$size" || true
    done
    long=$(printf '%0255d' 0)
    local names=(-x .hidden '!' '~' $'\377\376' 'with space/ two  spaces ' "$long")
    for i in "${names[@]}"; do
        printf '%s' "$i" >"$dir/$i"
    done
    printf '#!/bin/sh\n' >"$dir/script" && chmod 755 "$dir/script"
    for i in 1 59 60 4000 4063 4064 4095; do
        ln -s "$(head -c "$i" /dev/zero | tr '\0' t)" "$dir/link-$i"
    done
    for (( i = 0; i < 500; i++ )); do : >"$dir/many/a-name-of-some-length-$i"; done
    add "$1" corners
    CORNERS=$ADDED
}

# The path that a VM is started with. It refers to all others, as a system's toplevel does, and contains links to programs and one
# program that needs several of them.
add_top() {
    local top=$1/tree/system grep=${STORE_PATH[grep]}
    mkdir -p "$top/sw"
    ln -s "${STORE_PATH[bash]}/bin/bash" "$top/sw/bash"
    ln -s "${STORE_PATH[coreutils]}/bin/ls" "$top/sw/ls"
    report "$grep/bin/grep" "$grep/share/doc/grep/copyright" >"$top/sw/report"
    chmod 755 "$top/sw/report"
    add "$1" system "${STORE_PATH[@]}" "$CORNERS"
    TOP=$ADDED
    printf '%s' "$TOP/sw/report" >"$1/run"
    report_output "$1" >"$1/run-output"
}

# report GREP FILE: prints a script for the store's bash that runs a grep on a file.
report() {
    printf '%s\n' "#!${STORE_PATH[bash]}/bin/bash" \
        "printf 'bash %s and grep, from the store: ' \"\${BASH_VERSION%%(*}\"" \
        "exec $1 -c '' $2"
}

report_output() {
    local version=${STORE_PATH[bash]#*-bash-}
    printf 'bash %s and grep, from the store: ' "${version%%-*}"
    wc -l <"$1/root${STORE_PATH[grep]}/share/doc/grep/copyright"
}

# A path that is in the store but not in the closure: a guest must not see it.
add_outsider() {
    mkdir "$1/tree/outsider"
    printf 'secret\n' >"$1/tree/outsider/secret"
    add "$1" outsider
}

# Writes the two files of Nix's closureInfo, and the registration in the format of --dump-db.
write_closure_info() {
    mkdir "$1/closure-info"
    in_store "$1/root" -qR "$TOP" >"$1/closure-info/store-paths"
    # shellcheck disable=SC2046
    in_store "$1/root" --dump-db $(cat "$1/closure-info/store-paths") >"$1/dump-db"
    as_closure_info <"$1/dump-db" >"$1/closure-info/registration"
}

# A record is path, hash, narSize, deriver, number of references, references; closureInfo prefixes the hash with its type.
as_closure_info() {
    awk 'at == 1 { $0 = "sha256:" $0 }
         at == 4 { references = $0 }
         { print; at++ }
         at == 5 + references { at = 0; references = 0 }'
}
