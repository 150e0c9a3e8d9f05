# s3s-fs, an S3 server that stores objects in a directory and checks signatures.
# shellcheck shell=bash

S3S_FS_VERSION=0.14.1

# Sets LAZYSTORE_TEST_S3, the path of the program.
prepare_s3() {
    if [[ -z ${LAZYSTORE_TEST_S3:-} ]]; then
        local dir=$CACHE/s3s-$S3S_FS_VERSION
        cached build_s3 "$dir"
        LAZYSTORE_TEST_S3=$dir/bin/s3s-fs
    fi
    export LAZYSTORE_TEST_S3
}

# Built without optimisation: it would take minutes, and a few small files do not need it.
build_s3() {
    [[ ! -d $1 ]] || { keep "$1"; return; }
    say "cargo install s3s-fs $S3S_FS_VERSION"
    rm -rf "$1.tmp"
    quietly env -u RUSTFLAGS cargo install --locked --debug s3s-fs --version "$S3S_FS_VERSION" --features binary --root "$1.tmp"
    mv "$1.tmp" "$1"
}
