// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// JSON holds Unicode only, but paths and names in images are bytes. They are
// stored escaped, and are as they were in the structs of this package.

// escapeText writes control characters, backslashes, and bytes that are not
// UTF-8 as \xNN, with lower-case hex digits.
func escapeText(s string) (string, error) {
	if plainText(s) {
		return s, nil
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 || r < 0x20 || r == 0x7f || r == '\\' {
			fmt.Fprintf(&b, `\x%02x`, s[i])
		} else {
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String(), nil
}

// unescapeText is the reverse of escapeText, and refuses what that does not write.
func unescapeText(s string) (string, error) {
	if plainText(s) {
		return s, nil
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		if i+3 >= len(s) || s[i+1] != 'x' {
			return "", fmt.Errorf("text %.200q is not escaped as it should be", s)
		}
		v, err := strconv.ParseUint(s[i+2:i+4], 16, 8)
		if err != nil {
			return "", fmt.Errorf("text %.200q is not escaped as it should be", s)
		}
		b.WriteByte(byte(v))
		i += 3
	}
	plain := b.String()
	if again, _ := escapeText(plain); again != s {
		return "", fmt.Errorf("text %.200q is not escaped as it should be", s)
	}
	return plain, nil
}

// plainText reports whether s is ASCII that needs no escapes, as most texts are.
func plainText(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] >= 0x7f || s[i] == '\\' {
			return false
		}
	}
	return true
}

func mapAll(texts []*string, f func(string) (string, error)) error {
	for _, t := range texts {
		s, err := f(*t)
		if err != nil {
			return err
		}
		*t = s
	}
	return nil
}

// readable makes s fit for people and for JSON: valid UTF-8 of at most limit bytes.
func readable(s string, limit int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit-len("…")], "") + "…"
}
