// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/dustin/go-humanize"

	"github.com/imgbackup/imgbackup/internal/printable"
)

// printJSON writes one JSON document to stdout.
func (a *app) printJSON(v any) error { return writeJSON(a.out, v) }

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// checkedWriter keeps the first error of the many small writes of a table.
type checkedWriter struct {
	w   io.Writer
	err error
}

func (c *checkedWriter) printf(format string, args ...any) {
	if c.err == nil {
		_, c.err = fmt.Fprintf(c.w, format, args...)
	}
}

// size writes bytes for people.
func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

// oneLine is text of others where it has one line.
func oneLine(s string) string { return printable.OneLine(s) }
