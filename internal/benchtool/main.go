// SPDX-License-Identifier: Apache-2.0

// Command benchtool makes the data of the benchmarks and measures the floors
// that backup and restore are compared with: the same work with nothing around
// it. It is run by scripts/bench.
package main

import (
	"errors"
	"fmt"
	"os"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "benchtool:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	const usage = "usage: benchtool gen FILE SIZE DATA | floor-backup IMAGE OUT sync|nosync | floor-restore IN OUT | dirty FILE SIZE BYTES SEED | thin FILE | bigmap write|replay DIR | first-bytes SOCKET EXPORT COMMAND… | extents FILE N | crowd REPOSITORY N | clones PLACE DOMAIN N | history PLACE DOMAINS CHECKPOINTS | life write DIR PACKS CHECKPOINTS | life read DIR | far ADDRESS TARGET DELAY MB/S MOST | s3 …"
	if len(args) == 0 {
		return errors.New(usage)
	}
	switch cmd, rest := args[0], args[1:]; {
	case cmd == "gen" && len(rest) == 3:
		return generate(rest[0], rest[1], rest[2])
	case cmd == "dirty" && len(rest) == 4:
		return dirty(rest[0], rest[1], rest[2], rest[3])
	case cmd == "thin" && len(rest) == 1:
		return thin(rest[0])
	case cmd == "floor-backup" && len(rest) == 3:
		return floorBackup(rest[0], rest[1], rest[2] == "sync")
	case cmd == "floor-restore" && len(rest) == 2:
		return floorRestore(rest[0], rest[1])
	case cmd == "bigmap" && len(rest) == 2:
		return bigMap(rest[0], rest[1])
	case cmd == "first-bytes" && len(rest) >= 3:
		return firstBytes(rest[0], rest[1], rest[2:])
	case cmd == "extents" && len(rest) == 2:
		return extents(rest[0], rest[1])
	case cmd == "crowd" && len(rest) == 2:
		return crowd(rest[0], rest[1])
	case cmd == "clones" && len(rest) == 3:
		return clones(rest[0], rest[1], rest[2])
	case cmd == "history" && len(rest) == 3:
		return history(rest[0], rest[1], rest[2])
	case cmd == "life" && len(rest) >= 2:
		return life(rest[0], rest[1], rest[2:])
	case cmd == "far" && len(rest) == 5:
		return far(rest[0], rest[1], rest[2], rest[3], rest[4])
	case cmd == "s3":
		return runS3(rest)
	}
	return errors.New(usage)
}
