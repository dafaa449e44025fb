// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imgbackup/imgbackup/internal/usage"
)

func TestEscaped(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"plain é 日本": "plain é 日本", "a\nb": `a\nb`, "\x1b[31m": `\x1b[31m`, "\xff": `\xff`, `\n`: `\\n`, "\u202e": `\u202e`, "\u009b": `\u009b`, "'\"": `'"`,
	} {
		if got := escaped(name); got != want {
			t.Errorf("%q is %q, want %q", name, got, want)
		}
	}
}

func TestModeText(t *testing.T) {
	t.Parallel()
	for mode, want := range map[uint32]string{
		unix.S_IFREG | 0o644: "-rw-r--r--", unix.S_IFDIR | 0o1777: "drwxrwxrwt", unix.S_IFREG | 0o4755: "-rwsr-xr-x", unix.S_IFREG | 0o6600: "-rwS--S---", unix.S_IFLNK | 0o777: "lrwxrwxrwx",
	} {
		if got := modeText(mode); got != want {
			t.Errorf("%o is %s, want %s", mode, got, want)
		}
	}
}

func FuzzSplitWords(f *testing.F) {
	for _, s := range []string{`ls /etc`, `cat 'a b' "c \" d" e\ f`, `x ''`, `'`, `\`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		words, err := splitWords(s)
		if err != nil {
			if !errors.Is(err, usage.ErrWrong) {
				t.Error(err)
			}
			return
		}
		var quoted []string
		for _, w := range words {
			quoted = append(quoted, "'"+strings.ReplaceAll(w, "'", `'\''`)+"'")
		}
		again, err := splitWords(strings.Join(quoted, " "))
		if err != nil || fmt.Sprint(len(again), again) != fmt.Sprint(len(words), words) {
			t.Errorf("%q: %q, %q, %v", s, words, again, err)
		}
	})
}
