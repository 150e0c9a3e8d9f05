# Parses the options of `lazystore serve` that determine what a guest should see.
# shellcheck shell=bash
# shellcheck disable=SC2034  # used by the scripts that read this file

# parse_closure OPTION...: sets STORE_PATHS (a file) and perhaps REGISTRATION, or TREE, and the options of the image. Ignores all
# other options.
parse_closure() {
    STORE_PATHS='' REGISTRATION='' TREE='' STORE_DIR=/nix/store STORE_ROOT='' IMAGE_LABEL=nix-store
    IMAGE_MTIME='' IMAGE_UID='' IMAGE_GID=''
    local option value
    while (( $# )); do
        option=${1%%=*} value=${2:-}
        [[ $1 != --*=* ]] || value=${1#*=}
        case $option in
            --closure-info) STORE_PATHS=$value/store-paths REGISTRATION=$value/registration ;;
            --registration) REGISTRATION=$value ;;
            --store-paths) STORE_PATHS=$value ;;
            --tree) TREE=$value ;;
            --store-dir) STORE_DIR=$value ;;
            --store-root) STORE_ROOT=$value ;;
            --label) IMAGE_LABEL=$value ;;
            --mtime) IMAGE_MTIME=$value ;;
            --uid) IMAGE_UID=$value ;;
            --gid) IMAGE_GID=$value ;;
        esac
        shift
    done
    [[ -n $STORE_PATHS$TREE ]] || die 'no closure: give --closure-info, --store-paths or --tree'
    [[ -n $TREE || -r $STORE_PATHS ]] || die "cannot read $STORE_PATHS"
    [[ -z $TREE || -d $TREE ]] || die "$TREE is not a directory"
}

# The guest's mount point. It is the store's own path, because programs look for their libraries there.
guest_mount() { if [[ -n $TREE ]]; then echo /mnt; else echo "$STORE_DIR"; fi; }

# --- the expected files -----------------------------------------------------

# Lists the host's files in the format of tests/vm/manifest, with the attributes that they have on the disk.
expected_manifest() {
    local dir=${TREE:-$STORE_ROOT$STORE_DIR} names
    names=$(mktemp)
    closure_names >"$names"
    ( cd "$dir" && busybox sh "$ROOT/tests/vm/manifest" ) <"$names" | disk_attributes
    rm -f "$names"
}

# The entries of the disk's root directory, NUL-ended.
closure_names() {
    if [[ -n $TREE ]]; then
        ( cd "$TREE" && find . -mindepth 1 -maxdepth 1 -print0 )
    else
        LC_ALL=C sort -u "$STORE_PATHS" | sed "/^\$/d; s,^$STORE_DIR/,./," | tr '\n' '\0'
    fi
}

# A store has canonical attributes, independent of the host's modes. A tree keeps its own, unless an option changes them.
disk_attributes() {
    local uid=$IMAGE_UID gid=$IMAGE_GID mtime=$IMAGE_MTIME modes=()
    if [[ -z $TREE ]]; then
        uid=${uid:-0} gid=${gid:-0} mtime=${mtime:-1}
        modes=(-e 's/^f [0-7]*[1357][0-7]{2} /f 555 /;tend' -e 's/^f [0-7]+ /f 444 /;tend' -e 's/^d [0-7]+ /d 555 /')
    fi
    LC_ALL=C sed -E "${modes[@]}" -e :end \
        -e "s/^([dflo] [0-7]+) ([0-9]+) ([0-9]+) (-?[0-9]+) /\1 ${uid:-\\2} ${gid:-\\3} ${mtime:-\\4} /"
}
