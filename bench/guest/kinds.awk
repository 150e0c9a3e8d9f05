# Sums the requests in a trace of block:block_rq_issue. On lazystore's disk everything below 128 GiB (`low`) is metadata; an image of
# mkfs.erofs mixes both.
/block_rq_issue/ {
    for (i = 1; i <= NF; i++) if ($i == "+") { sector = $(i - 1); count = $(i + 1) }
    kind = sector < 268435456 ? "low" : "high"
    requests[kind]++
    bytes[kind] += count * 512
    if (count <= 8) single[kind]++
}
END {
    for (kind in requests)
        printf "bench: kind job=%s kind=%s requests=%d bytes=%d single=%d\n", job, kind, requests[kind], bytes[kind], single[kind]
}
