// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// bitmapEvents: what people and programs do to bitmaps, their own and ours.
func bitmapEvents() []*event {
	return []*event{
		{name: "foreign bitmap added", weight: 4, qcow2: true, keeps: true, do: func(l *life, d *lifeDisk) bool {
			return l.addForeign(d) != ""
		}},
		{name: "foreign bitmap cleared", weight: 1, qcow2: true, keeps: true, do: func(l *life, d *lifeDisk) bool {
			return l.onForeign(d, "--clear")
		}},
		{name: "foreign bitmap disabled", weight: 1, qcow2: true, keeps: true, do: func(l *life, d *lifeDisk) bool {
			return l.onForeign(d, "--disable")
		}},
		{name: "foreign bitmap removed", weight: 1, qcow2: true, keeps: true, do: func(l *life, d *lifeDisk) bool {
			return l.onForeign(d, "--remove")
		}},
		{name: "newest bitmap removed", weight: 2, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			return l.onNewest(d, func(name string) bool { return l.bitmap(d, "--remove", name) })
		}},
		{name: "older bitmap removed", weight: 2, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			names := l.oursIn(d)
			return len(names) > 1 && l.bitmap(d, "--remove", names[0])
		}},
		{name: "all bitmaps removed", weight: 1, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			done := false
			for _, name := range l.bitmapsIn(d) {
				done = l.bitmap(d, "--remove", name) || done
			}
			return done
		}},
		{name: "bitmap disabled", weight: 2, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			return l.onNewest(d, func(name string) bool {
				d.tampered[name] = true
				return l.bitmap(d, "--disable", name)
			})
		}},
		{name: "older bitmap disabled", weight: 1, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			names := l.oursIn(d)
			done := len(names) > 1 && l.bitmap(d, "--disable", names[0])
			l.writeSome(d.path, d.format, 1, false)
			return done
		}},
		{name: "bitmap disabled for a while", weight: 3, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			return l.onNewest(d, func(name string) bool {
				d.tampered[name] = true
				ok := l.bitmap(d, "--disable", name)
				l.writeSome(d.path, d.format, 2, false)
				return l.bitmap(d, "--enable", name) && ok
			})
		}},
		{name: "bitmap cleared", weight: 3, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			return l.onNewest(d, func(name string) bool {
				d.tampered[name] = true
				l.writeSome(d.path, d.format, 1, false)
				return l.bitmap(d, "--clear", name)
			})
		}},
		{name: "older bitmap cleared", weight: 2, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			names := l.oursIn(d)
			if len(names) < 2 {
				return false
			}
			d.tampered[names[0]] = true
			return l.bitmap(d, "--clear", names[0])
		}},
		{name: "bitmap removed and added again", weight: 3, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			return l.onNewest(d, func(name string) bool {
				d.tampered[name] = true
				l.writeSome(d.path, d.format, 1, false)
				return l.bitmap(d, "--remove", name) && l.bitmap(d, "--add", name)
			})
		}},
		{name: "bitmap added again with another granularity", weight: 1, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			return l.onNewest(d, func(name string) bool {
				d.tampered[name] = true
				return l.bitmap(d, "--remove", name) && l.bitmap(d, "--add", "-g", "128k", name)
			})
		}},
		{name: "foreign bitmap merged into ours", weight: 1, qcow2: true, do: func(l *life, d *lifeDisk) bool {
			foreign := l.addForeign(d)
			l.writeSome(d.path, d.format, 1, false)
			return foreign != "" && l.onNewest(d, func(name string) bool {
				return l.bitmap(d, "--merge", foreign, name)
			})
		}},
	}
}

// bitmap runs qemu-img bitmap with the options before the name.
func (l *life) bitmap(d *lifeDisk, args ...string) bool {
	last := len(args) - 1
	all := append([]string{"bitmap", "-f", "qcow2"}, args[:last]...)
	return l.try("qemu-img", append(all, d.path, args[last])...) == nil
}

// addForeign adds a bitmap of somebody else's.
func (l *life) addForeign(d *lifeDisk) string {
	l.files++
	name := fmt.Sprintf("foreign%d", l.files)
	if newest := l.oursIn(d); len(newest) > 0 && l.rng.IntN(4) == 0 {
		name = newest[0] + "0" // looks like one of ours
	}
	options := []string{"--add", "-g", strconv.Itoa(512 << l.rng.IntN(12)), name}
	if l.rng.IntN(4) == 0 {
		options = slices.Insert(options, 1, "--disable")
	}
	if !l.bitmap(d, options...) {
		return ""
	}
	return name
}

// onForeign does something to a foreign bitmap; there is one.
func (l *life) onForeign(d *lifeDisk, action string) bool {
	name := ""
	ours := l.oursIn(d)
	for _, b := range l.bitmapsIn(d) {
		if !slices.Contains(ours, b) && strings.HasPrefix(b, "foreign") {
			name = b
		}
	}
	if name == "" {
		name = l.addForeign(d)
		l.writeSome(d.path, d.format, 1, false)
	}
	return name != "" && l.bitmap(d, action, name)
}

// onNewest does something to the newest bitmap of ours; there is one, if the
// image can have any.
func (l *life) onNewest(d *lifeDisk, do func(name string) bool) bool {
	names := l.oursIn(d)
	if len(names) == 0 {
		l.backup()
		names = l.oursIn(d)
	}
	if len(names) == 0 {
		return false
	}
	ok := do(names[len(names)-1])
	d.sound = false
	return ok
}
