// SPDX-License-Identifier: Apache-2.0

package request

import (
	"fmt"
	"slices"
	"strings"
)

// options are the value of a flag such as --disk: DISK=PATH,key=value,… As in
// QEMU, a comma that belongs to a value is doubled.
type options struct {
	disk    string
	path    string
	hasPath bool     // there is a = behind the disk
	rest    []string // key=value
}

func splitOptions(s string) options {
	var parts []string
	var part strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] != ',':
			part.WriteByte(s[i])
		case i+1 < len(s) && s[i+1] == ',':
			part.WriteByte(',')
			i++
		default:
			parts = append(parts, part.String())
			part.Reset()
		}
	}
	parts = append(parts, part.String())
	o := options{rest: parts[1:]}
	o.disk, o.path, o.hasPath = strings.Cut(parts[0], "=")
	return o
}

// option is a key that options may have, and what takes its value.
type option struct {
	key string
	set func(val string) error
}

// read hands every value to its option, and returns which keys there were.
func (o options) read(known []option) (given map[string]bool, err error) {
	given = make(map[string]bool)
	for _, part := range o.rest {
		key, val, ok := strings.Cut(part, "=")
		if !ok {
			return given, fmt.Errorf("%q is no key=value (a comma in a path is doubled)", part)
		}
		if given[key] {
			return given, fmt.Errorf("%s is given twice", key)
		}
		given[key] = true
		i := slices.IndexFunc(known, func(k option) bool { return k.key == key })
		if i < 0 {
			var keys []string
			for _, k := range known {
				keys = append(keys, k.key)
			}
			return given, fmt.Errorf("unknown key %q: want %s", key, oneOf(keys))
		}
		if err := known[i].set(val); err != nil {
			return given, err
		}
	}
	return given, nil
}

// text takes a value that must not be empty; what says what it names.
func text(key, what string, to *string) option {
	return option{key, func(val string) error {
		if val == "" {
			return fmt.Errorf("%s= names no %s", key, what)
		}
		*to = val
		return nil
	}}
}

// word takes one of a few words.
func word[T ~string](key string, to *T, words ...T) option {
	return option{key, func(val string) error {
		if !slices.Contains(words, T(val)) {
			var names []string
			for _, w := range words {
				names = append(names, string(w))
			}
			return fmt.Errorf("%s %q: want %s", key, val, oneOf(names))
		}
		*to = T(val)
		return nil
	}}
}

// oneOf lists words as "a, b or c".
func oneOf(words []string) string {
	last := len(words) - 1
	if last < 1 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:last], ", ") + " or " + words[last]
}
