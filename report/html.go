// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bufio"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"io"
	"net/url"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/imgbackup/imgbackup/chain"
)

//go:embed style.css
var style string

// headText is the head of all pages, which takes a Style and a Title.
//
//go:embed head.html
var headText string

//go:embed page.html
var pageText string

// page is what the template is given.
type page struct {
	*Report
	Style  template.CSS
	Title  string
	Shown  []*domainPage
	Linked bool // the domains are pages of their own
	Index  bool // the table of domains is shown
	zone   *time.Location
}

// domainPage is a domain and its pictures.
type domainPage struct {
	*Domain
	*charts
	Path string // in the JSON
	zone *time.Location
}

// HTML writes the report as one page that stands by itself.
func (r *Report) HTML(w io.Writer) error {
	p := r.page("Backups in " + r.Place)
	p.Index = true
	for i := range r.Domains {
		p.Shown = append(p.Shown, p.domain(i))
	}
	return p.write(w)
}

// Pages writes the report as several pages, each by create, which is given the name of its
// file. The first is index.html, and each domain has one of its own.
func (r *Report) Pages(create func(name string, write func(io.Writer) error) error) error {
	index := r.page("Backups in " + r.Place)
	index.Index, index.Linked = true, true
	if err := create("index.html", index.write); err != nil {
		return err
	}
	for i, d := range r.Domains {
		p := r.page("Backups of " + d.Domain)
		p.Shown = append(p.Shown, p.domain(i))
		if err := create(FileName(d.Domain), p.write); err != nil {
			return err
		}
	}
	return nil
}

// FileName is the name of a domain's page. The prefix keeps it from being index.html.
func FileName(domain string) string {
	const most = 200 // bytes of a name that may have 255 with the rest
	name := chain.EncodeDomain(domain)
	if len(name) > most {
		sum := sha256.Sum256([]byte(domain))
		name = name[:most-33] + "-" + hex.EncodeToString(sum[:16])
	}
	return "domain-" + name + ".html"
}

func (r *Report) page(title string) *page {
	zone, err := time.LoadLocation(r.Zone)
	if err != nil {
		zone = time.UTC
	}
	return &page{Report: r, Style: template.CSS(style), Title: title, zone: zone}
}

func (p *page) domain(i int) *domainPage {
	return &domainPage{p.Domains[i], p.Domains[i].draw(i, p.zone, p.Made), fmt.Sprintf("domains.%d", i), p.zone}
}

func (p *page) write(w io.Writer) error {
	return execute(w, pageText, p.functions(), p)
}

// execute writes a template filled with what of.
func execute(w io.Writer, text string, functions template.FuncMap, of any) error {
	t, err := template.New("page").Funcs(functions).Parse(headText + text)
	if err != nil {
		return err
	}
	buf := bufio.NewWriterSize(w, 64<<10)
	if err := t.Execute(buf, of); err != nil {
		return err
	}
	return buf.Flush()
}

func (p *page) functions() template.FuncMap {
	return template.FuncMap{
		"bytes":   bytesText,
		"file":    func(domain string) string { return "./" + url.PathEscape(FileName(domain)) },
		"time":    func(t time.Time) string { return t.In(p.zone).Format("2006-01-02 15:04") },
		"date":    func(t time.Time) string { return t.In(p.zone).Format(time.DateOnly) },
		"offset":  func(t time.Time) string { return t.In(p.zone).Format("MST") },
		"iso":     func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"span":    func(seconds int64) string { return span(time.Duration(seconds) * time.Second) },
		"path":    func(parts ...any) string { return joinPath(parts) },
		"words":   func(l Level) string { return [...]string{"All is well", "Look at this", "Act now"}[l] },
		"percent": percentText,
		"mark":    (*Checkpoint).mark,
		"unusual": func(c *Checkpoint) bool { return c.mark() == "warning" },
		"f":       func(x float64) string { return fmt.Sprintf("%.1f", x) },
		"size":    func(path string, n int64) number { return number{path, n} },
		"count":   func(path string, n int) number { return number{path, int64(n)} },
		"inc":     func(i int) int { return i + 1 },
	}
}

func joinPath(parts []any) string {
	s := fmt.Sprint(parts[0])
	for _, p := range parts[1:] {
		s += "." + fmt.Sprint(p)
	}
	return s
}

func bytesText(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

// percentText is what part of whole a part is; a dash, if there is no whole.
func percentText(part, whole int64) string {
	switch {
	case whole <= 0:
		return "–"
	case part > 0 && part*100 < whole:
		return "<1%"
	}
	return fmt.Sprintf("%.0f%%", 100*float64(part)/float64(whole))
}
