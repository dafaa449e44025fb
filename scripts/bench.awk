# SPDX-License-Identifier: Apache-2.0
# Prints a table of medians from lines "name seconds cpu-seconds peak-KiB", and the ratios
# that the goals are about, each the median over rounds.
function median(list,   n, v, i, j, t) {
  n = split(list, v, " ")
  for (i = 2; i <= n; i++) for (j = i; j > 1 && v[j-1]+0 > v[j]+0; j--) { t = v[j]; v[j] = v[j-1]; v[j-1] = t }
  return n % 2 ? v[(n+1)/2] : (v[n/2] + v[n/2+1]) / 2
}
# ratio prints a/b, or a/(b + c), and whether that is at most the goal: a number,
# "below" a number, or none.
function ratio(a, b, goal, c,   n, x, y, z, i, r, m, max) {
  n = split(wall[a], x, " "); if (n != split(wall[b], y, " ") || n == 0) return
  if (c != "" && n != split(wall[c], z, " ")) return
  for (i = 1; i <= n; i++) r = r " " (y[i] + z[i] > 0 ? x[i] / (y[i] + z[i]) : 0)
  m = median(r); max = goal; sub(/^below /, "", max)
  printf "| %s / %s | %.2f | %s | %s |\n", a, c == "" ? b : "(" b " + " c ")", m, goal, goal == "" ? "" : m < max + 0 || m == max && goal == max ? "yes" : "no"
}
# limit prints a time and whether it is at most the goal, in seconds.
function limit(name, goal,   m) {
  if (!(name in wall)) return
  m = median(wall[name])
  printf "| %s | %.3f s | %s s | %s |\n", name, m, goal, m + 0 <= goal + 0 ? "yes" : "no"
}
{
  secs = $(NF-2); used = $(NF-1); peak = $NF
  $NF = ""; $(NF-1) = ""; $(NF-2) = ""; name = $0; sub(/ +$/, "", name)
  if (!(name in wall)) order[++count] = name
  wall[name] = wall[name] " " secs
  cpu[name] = cpu[name] " " used
  if (peak+0 > rss[name]+0) rss[name] = peak
}
END {
  print "| work | wall, s | CPU, s | peak, MiB |"; print "| --- | ---: | ---: | ---: |"
  for (i = 1; i <= count; i++) printf "| %s | %.2f | %.2f | %.0f |\n", order[i], median(wall[order[i]]), median(cpu[order[i]]), rss[order[i]] / 1024
  print ""; print "| ratio, round by round | median | goal | met |"; print "| --- | ---: | --- | --- |"
  ratio("full: imgbackup", "full: floor, synced", "1.4")
  ratio("full: imgbackup --no-verify", "full: floor, synced", "1.3")
  ratio("full: imgbackup", "full: floor, not synced", "")
  ratio("full: imgbackup --no-verify", "full: floor, not synced", "")
  ratio("full: imgbackup", "full: qemu-img convert -c zstd -W -m 16", "below 1")
  ratio("full: imgbackup", "full: borg zstd,1, chunks of 4 MiB", "below 1")
  ratio("full: imgbackup", "full: restic", "below 1")
  ratio("full: imgbackup", "full: virtnbdbackup, lz4", "below 1")
  ratio("incremental, 55 MB dirty: imgbackup", "incremental, 55 MB dirty: virtnbdbackup", "0.25")
  ratio("restore: imgbackup, raw", "restore: floor", "1.25")
  ratio("drill: one checkpoint, --no-scratch", "drill: restore, qcow2", "1.25")
  ratio("drill: one checkpoint, chunks and restore", "drill: restore --verify, qcow2", "1.25")
  ratio("drill: one checkpoint, and image", "drill: restore --verify, qcow2", "")
  ratio("drill: 50 checkpoints, --no-scratch", "drill: all packs read once (check --read-data)", "1.5")
  ratio("restore: imgbackup, raw", "restore: qemu-img convert -W from its zstd", "below 1")
  ratio("restore: 101st checkpoint of a chain", "restore: a full with the same content", "1.1")
  # 1/0.9: client and server share the cores, so that times add up.
  ratio("S3, full: imgbackup", "S3, full: the same backup, local", "1.11", "S3, full: raw PUTs of its packs")
  ratio("S3, restore: imgbackup", "S3, restore: the same, local", "1.11", "S3, restore: raw GETs of its packs")
  ratio("far, full: far", "far, full: near", "1.15")
  ratio("far, restore: far", "far, restore: near", "1.15")
  ratio("far, check --read-data: far", "far, check --read-data: near", "1.15")
  ratio("far, copy from it: far", "far, copy from it: near", "1.15")
  ratio("far, incremental, 5 MB: far", "far, incremental, 5 MB: near", "")
  ratio("far, drill: far", "far, drill: near", "1.15")
  # At least 0.8 times as fast.
  ratio("far, nbdcopy from serve: far", "far, restore: far", "1.25")
  ratio("far, a guest's boot: far", "far, a guest's boot: near", "2")
  # Beside the best of the fixed numbers of connections.
  for (i = 4; i <= 8; i += 2) {
    ratio("far, full: busy", "far, full: busy" i, "1.2")
    ratio("far, restore: busy", "far, restore: busy" i, "1.2")
  }
  # Looking 1 chunk in 16 KiB up costs 5 % at most.
  ratio("known: clone, older than many others", "known: clone, no other chunks, no table", "1.05")
  # At least 0.8 times as fast.
  ratio("NBD: nbdcopy from serve", "NBD: restore", "1.25")
  ratio("NBD: nbdcopy from serve, to nothing", "NBD: restore", "1.25")
  ratio("NBD: nbdcopy from export", "NBD: nbdcopy from qemu-nbd", "1")
  ratio("fill: 3000 reads of 4 KiB, beside --fill", "fill: 3000 reads of 4 KiB, served", "2")
  ratio("prune: plan", "prune: metadata, listed and read once", "3")
  ratio("repack: packs that are half unused", "repack: copying what is left", "1.25")
  ratio("check: --read-data", "check: sha256sum of the objects, all cores", "1.11")
  split("2T 16T", big, " ")
  for (i = 1; i <= 2; i++) {
    ratio("large, " big[i] ": incremental, 1 MiB, but for these", "large, " big[i] ": qemu-img check", "0.35")
    ratio("large, " big[i] ": incremental, 1 MiB, but for these, processor", "large, " big[i] ": qemu-img check, processor", "0.35")
  }
  ratio("boot: imgbackup drill, to the login", "boot: floor, a local qcow2", "1.5")
  ratio("crypt, full: encrypted, processor", "crypt, full: plain, processor", "1.15")
  ratio("crypt, restore: encrypted, processor", "crypt, restore: plain, processor", "1.25")
  ratio("crypt, 1,024 changes of 16 KiB: encrypted, processor", "crypt, 1,024 changes of 16 KiB: plain, processor", "1.3")
  ratio("crypt, by content: encrypted, processor", "crypt, by content: plain, processor", "")
  ratio("crypt, full, far: encrypted", "crypt, full, far: plain", "1.15")
  # At least 0.8 times as fast.
  ratio("reach: dd iflag=direct from the mount", "reach: restore", "1.25")
  ratio("reach: dd from the mount", "reach: restore", "1.25")
  ratio("reach: a download over HTTP", "reach: nbdcopy", "1.25")
  limit("reach: that file, but for the appliance", "5")
  limit("NBD: first bytes of a chain of 101", "0.1")
  limit("report: 100 domains, 365 checkpoints each", "10")
  limit("cold: 1000 domains, --skip-unchanged", "20")
}
