// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"fmt"
	"os"
	"strconv"
)

// event is something that happens to a disk between two backups.
type event struct {
	name   string
	weight int                             // how often it happens by chance
	qcow2  bool                            // a raw disk is converted first
	keeps  bool                            // an incremental by bitmap stays possible, and must be taken
	renews bool                            // it becomes possible by this
	do     func(l *life, d *lifeDisk) bool // false: nothing happened
}

// allEvents lists all kinds of events, in an order that is part of what a seed
// means.
func allEvents() []*event {
	var all []*event
	all = append(all, guestEvents()...)
	all = append(all, imageEvents()...)
	all = append(all, bitmapEvents()...)
	all = append(all, accidentEvents()...)
	all = append(all, placeEvents()...)
	all = append(all, repositoryEvents()...)
	all = append(all, &event{name: "its name changed", weight: 8, keeps: true, do: (*life).rename})
	return all
}

// guestEvents: what the guest does, and to the size of its disk.
func guestEvents() []*event {
	return []*event{
		{name: "guest writes", weight: 40, keeps: true, do: func(l *life, d *lifeDisk) bool {
			return l.writeSome(d.path, d.format, 1+l.rng.IntN(6), false)
		}},
		{name: "write of zeros", weight: 6, keeps: true, do: func(l *life, d *lifeDisk) bool {
			return l.wide(d, "write -z %d %d")
		}},
		{name: "write of zeros that unmaps", weight: 6, keeps: true, do: func(l *life, d *lifeDisk) bool {
			return l.wide(d, "write -z -u %d %d")
		}},
		{name: "discard", weight: 6, keeps: true, do: func(l *life, d *lifeDisk) bool {
			return l.wide(d, "discard %d %d")
		}},
		{name: "compressed writes", weight: 6, qcow2: true, keeps: true, do: compressedWrites},
		{name: "grow", weight: 4, keeps: true, do: func(l *life, d *lifeDisk) bool {
			d.sound = d.sound && !d.shrunk
			return l.resize(d, l.size(d)+512*(1+l.rng.Int64N(2000)))
		}},
		{name: "grow with preallocation", weight: 2, qcow2: true, keeps: true, do: func(l *life, d *lifeDisk) bool {
			d.sound = d.sound && !d.shrunk
			return l.resize(d, l.size(d)+512*(1+l.rng.Int64N(2000)), "--preallocation="+[]string{"metadata", "falloc", "full"}[l.rng.IntN(3)])
		}},
		{name: "shrink", weight: 3, keeps: true, do: func(l *life, d *lifeDisk) bool {
			return l.shrink(d)
		}},
		{name: "shrink and grow", weight: 4, do: func(l *life, d *lifeDisk) bool {
			size := l.size(d)
			return l.shrink(d) && l.resize(d, size)
		}},
		{name: "shrink within a cluster and grow", weight: 2, do: func(l *life, d *lifeDisk) bool {
			size := l.size(d)
			cut := 512 * (1 + l.rng.Int64N(64))
			return size > cut && l.resize(d, size-cut, "--shrink") && l.resize(d, size)
		}},
		{name: "shrink, grow and write there", weight: 4, do: func(l *life, d *lifeDisk) bool {
			size := l.size(d)
			if !l.shrink(d) {
				return false
			}
			start := l.size(d) >> 9 << 9
			if !l.resize(d, size) {
				return false
			}
			for range 1 + l.rng.IntN(3) {
				at := start + 512*l.rng.Int64N(max(1, (size-start)/512-8))
				l.qemuIO(d.path, d.format, fmt.Sprintf("write -P %d %d %d", 1+l.rng.IntN(255), at, min(4096, (size-at)>>9<<9)))
			}
			return true
		}},
		{name: "write, shrink and grow", weight: 3, do: func(l *life, d *lifeDisk) bool {
			size := l.size(d)
			at := max(0, size-512*(1+l.rng.Int64N(256))) >> 9 << 9
			l.qemuIO(d.path, d.format, fmt.Sprintf("write -P %d %d %d", 1+l.rng.IntN(255), at, (size-at)>>9<<9))
			return l.resize(d, max(512, at+512*(l.rng.Int64N(64)-32)), "--shrink") && l.resize(d, size)
		}},
		{name: "shrink and grow with preallocation", weight: 2, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			size := l.size(d)
			return l.shrink(d) && l.resize(d, size, "--preallocation="+[]string{"metadata", "falloc", "full"}[l.rng.IntN(3)])
		}},
	}
}

// wide does something to a random part of the disk.
func (l *life) wide(d *lifeDisk, command string) bool {
	sectors := l.size(d) >> 9
	if sectors < 2 {
		return false
	}
	start := l.rng.Int64N(sectors)
	end := start + 1 + l.rng.Int64N(sectors-start)
	return l.qemuIO(d.path, d.format, fmt.Sprintf(command, start*512, (end-start)*512))
}

func compressedWrites(l *life, d *lifeDisk) bool {
	clusters := l.size(d) / d.cluster
	if clusters == 0 {
		return false
	}
	var commands []string
	for range 1 + l.rng.IntN(4) {
		n := 1 + l.rng.Int64N(min(clusters, 4))
		at := l.rng.Int64N(clusters-n+1) * d.cluster
		for i := range n {
			commands = append(commands, fmt.Sprintf("write -c -P %d %d %d", 1+l.rng.IntN(255), at+i*d.cluster, d.cluster))
		}
	}
	return l.qemuIO(d.path, d.format, commands...)
}

// resize gives the disk another size; QEMU refuses it when a bitmap was left
// in use.
func (l *life) resize(d *lifeDisk, size int64, options ...string) bool {
	if d.format == "raw" {
		// As a file system or a person does it: not in whole sectors.
		l.note("truncate -s %d %s", size, d.path)
		if err := os.Truncate(d.path, size); err != nil {
			l.t.Fatal(err)
		}
		return true
	}
	args := append([]string{"resize", "-q", "-f", "qcow2"}, options...)
	return l.try("qemu-img", append(args, d.path, strconv.FormatInt(size, 10))...) == nil
}

func (l *life) shrink(d *lifeDisk) bool {
	size := l.size(d)
	smaller := 512 * (1 + l.rng.Int64N(max(1, size/512)))
	if l.rng.IntN(2) == 0 {
		smaller = max(512, size-512*(1+l.rng.Int64N(512)))
	}
	if smaller >= size || !l.resize(d, smaller>>9<<9, "--shrink") {
		return false
	}
	d.shrunk = true
	return true
}
