#!/bin/sh
# recover.sh REPOSITORY OUTPUT MAP...    MAPs are names of maps, oldest (the full one) first
set -eu
repo=$1 out=$2
shift 2
: >"$out"
for map; do
    file="$repo/maps/$(echo "$map" | cut -c1-2)/$map.zst"
    echo "$map  $file" | sha256sum -c --quiet
    zstd -dcq "$file" >"$out.map"
    truncate -s "$(awk '$1 == "size" { print $2; exit }' "$out.map")" "$out"
    awk '$1 == "p" { name[$2] = $4 }
         $1 == "z" { print $1, $2, $3 }
         $1 == "d" { print $1, $2, $3, name[$4], $5, $6, $7, $8 }' "$out.map" |
    while read -r kind offset length pack frame size skip sum; do
        if [ "$kind" = z ]; then
            dd if=/dev/zero of="$out" bs=1M iflag=count_bytes count="$length" \
                oflag=seek_bytes seek="$offset" conv=notrunc status=none
            continue
        fi
        dd if="$repo/packs/$(echo "$pack" | cut -c1-2)/$pack.zst" bs=1M \
            iflag=skip_bytes,count_bytes skip="$frame" count="$size" status=none | zstd -dcq >"$out.chunk"
        echo "$sum  $out.chunk" | sha256sum -c --quiet
        dd if="$out.chunk" of="$out" bs=1M iflag=skip_bytes,count_bytes skip="$skip" count="$length" \
            oflag=seek_bytes seek="$offset" conv=notrunc status=none
    done
done
rm -f "$out.map" "$out.chunk"
