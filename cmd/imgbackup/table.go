// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"os"
	"strings"

	"github.com/mattn/go-runewidth"
	"golang.org/x/term"
)

// table prints rows in columns, as wide as what is in them. On a terminal a row is cut
// to its width; what goes to a file or a pipe never is.
type table struct {
	out    io.Writer
	indent string
	rows   [][]string
	below  []string
}

// legend explains signs of the table under it, where a person reads it.
func (t *table) legend(line string) { t.below = append(t.below, line) }

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

// columnGap is what stands between two columns.
const columnGap = "  "

// print writes all rows.
func (t *table) print() error {
	var widths []int
	for _, r := range t.rows {
		for i, c := range r {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], runewidth.StringWidth(c))
		}
	}
	limit := terminalWidth(t.out)
	w := &checkedWriter{w: t.out}
	for _, r := range t.rows {
		var line strings.Builder
		line.WriteString(t.indent)
		for i, c := range r {
			if i > 0 {
				line.WriteString(columnGap)
			}
			line.WriteString(runewidth.FillRight(c, widths[i]))
		}
		text := strings.TrimRight(line.String(), " ")
		if limit > 0 {
			text = runewidth.Truncate(text, limit, "…")
		}
		w.printf("%s\n", text)
	}
	if limit > 0 {
		for _, line := range t.below {
			w.printf("%s\n", line)
		}
	}
	return w.err
}

// terminalWidth is how many columns the terminal has that out is; 0: it is none.
func terminalWidth(out io.Writer) int {
	if r, ok := out.(*results); ok {
		out = r.out
	}
	f, ok := out.(*os.File)
	if !ok {
		return 0
	}
	n, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return n
}
