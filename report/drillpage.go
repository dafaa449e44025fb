// SPDX-License-Identifier: Apache-2.0

package report

import (
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"strings"
	"time"

	"github.com/imgbackup/imgbackup/drill/record"
)

//go:embed drill.html
var drillText string

// drillPage is what the template of a run of drills is given.
type drillPage struct {
	*record.Run
	Style template.CSS
	Title string
	Tool  string
	zone  *time.Location
	kept  func(name string) ([]byte, error)
}

// Bounds of what is shown of a file that a step has kept; all of it lies beside the page.
const (
	maxScreen = 8 << 20
	maxShown  = 64 << 10
)

// DrillHTML writes a run of drills as one page that stands by itself. kept reads a file
// that a step has kept, by its name: screens are in the page, and of logs the end.
func DrillHTML(w io.Writer, run *record.Run, zone *time.Location, tool string, kept func(name string) ([]byte, error)) error {
	p := &drillPage{run, template.CSS(style), "Restore drill", tool, zone, kept}
	return execute(w, drillText, p.functions(), p)
}

func (p *drillPage) functions() template.FuncMap {
	return template.FuncMap{
		"bytes":  bytesText,
		"time":   func(t time.Time) string { return t.In(p.zone).Format("2006-01-02 15:04:05 MST") },
		"iso":    func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"ms":     milliseconds,
		"span":   func(seconds int64) string { return span(time.Duration(seconds) * time.Second) },
		"path":   func(parts ...any) string { return joinPath(parts) },
		"number": func(path string, n int64) number { return number{path, n} },
		"level":  verdictLevel,
		"status": statusLevel,
		"words":  func(v record.Verdict) string { return verdictWords[v] },
		"screen": p.screen,
		"tail":   p.tail,
	}
}

// verdictWords say a verdict to a person.
var verdictWords = map[record.Verdict]string{
	record.VerdictPassed:     "It can be restored: all required steps passed",
	record.VerdictFailed:     "A step failed",
	record.VerdictIncomplete: "Nothing is proven: a required step was skipped",
}

func verdictLevel(v record.Verdict) Level {
	switch v {
	case record.VerdictPassed:
		return Good
	case record.VerdictFailed:
		return Bad
	}
	return Warning
}

func statusLevel(s record.Status) Level {
	switch s {
	case record.Passed:
		return Good
	case record.Failed:
		return Bad
	}
	return Warning
}

func milliseconds(ms int64) string {
	d := time.Duration(ms) * time.Millisecond
	if d >= time.Minute {
		return span(d) + fmt.Sprintf(" %d s", int64(d%time.Minute/time.Second))
	}
	return d.String()
}

// screen is a picture as a part of the page; empty: it can't be one.
func (p *drillPage) screen(name string) template.URL {
	data, err := p.kept(name)
	if err != nil || len(data) > maxScreen || !strings.HasPrefix(string(data), "\x89PNG\r\n\x1a\n") {
		return ""
	}
	return template.URL("data:image/png;base64," + base64.StdEncoding.EncodeToString(data))
}

// tail is the end of a text.
func (p *drillPage) tail(name string) string {
	data, err := p.kept(name)
	if err != nil {
		return ""
	}
	if len(data) > maxShown {
		data = data[len(data)-maxShown:]
	}
	return strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && (r < ' ' || r >= 0x7f && r < 0xa0) || r == '\uFFFD' {
			return -1
		}
		return r
	}, strings.ToValidUTF8(string(data), ""))
}
