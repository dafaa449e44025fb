// SPDX-License-Identifier: Apache-2.0

package report

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/retention"
)

var now = time.Date(2026, 11, 28, 9, 0, 0, 0, time.UTC)

// made is a report on made-up domains: one that is well, one with branches, a warning and
// names that a page must not take for its own text, one that lost data, and an empty one.
func made(t testing.TB) *Report {
	t.Helper()
	o := Options{Now: now, Zone: time.UTC, Place: "s3://backups/site1", Tool: "imgbackup test", Rules: retention.Rules{Last: 5, Daily: 14, Weekly: 8}}
	r := &Report{Format: "imgbackup-report", Version: 1, Made: now, Zone: "UTC", Tool: o.Tool, Place: o.Place, RepositoryID: chain.NewUUID()}
	for i, name := range []string{"db", "<script>alert(1)</script>", "old", "gone"} {
		ms := history(uint64(i), []int{40, 30, 8, 0}[i])
		var drills []record.Name
		for k, m := range ms {
			switch {
			case name == "old" && k == len(ms)-1:
				m.Disks[0].Lost = []chain.Lost{{Offset: 0, Length: 65536, Reason: "it could not be read"}}
			case name != "old" && i == 1 && k == 20:
				m.Parent = ms[10].Ref() // a disk was restored, and went on
			}
			if k%20 == 19 {
				v := []record.Verdict{record.VerdictPassed, record.VerdictPassed, record.VerdictFailed, record.VerdictIncomplete}[k/20%4]
				n, err := record.NewName(m.Created.Add(time.Hour), v, m.UUID)
				if err != nil {
					t.Fatal(err)
				}
				drills = append(drills, n)
			}
		}
		d := &Domain{Domain: name, Hosts: []string{}, Verdict: Verdict{Reasons: []Reason{}}, Drills: []Drill{}, Checkpoints: []*Checkpoint{}}
		d.addDrills(drills, ms)
		if err := d.fill(ms, o); err != nil {
			t.Fatal(err)
		}
		r.Domains = append(r.Domains, d)
	}
	r.sum()
	return r
}

// history is n nights of two disks, the last of them last night.
func history(seed uint64, n int) []*chain.Manifest {
	random := rand.New(rand.NewPCG(seed, 7))
	var all []*chain.Manifest
	for i := range n {
		m := &chain.Manifest{
			Kind: chain.KindArchive, Checkpoint: fmt.Sprintf("n%d", i), UUID: chain.NewUUID(), Sequence: int64(i + 1),
			Created: now.Add(-time.Duration(n-i)*day + 2*time.Hour), Host: chain.Host{Name: "hv1"},
		}
		if i > 0 {
			m.Follow(all[i-1])
		}
		for k, disk := range []string{"vda", "vdb"} {
			d := chain.Disk{Name: disk, Size: 40 << 30, Mode: chain.ModeIncremental, Detection: chain.DetectionBitmap}
			d.DataBytes = int64(random.ExpFloat64() * float64(int64(300<<20)>>(3*k)))
			d.ReusedBytes, d.ZeroBytes = d.DataBytes/5, d.DataBytes/9
			d.StoredBytes = (d.DataBytes - d.ReusedBytes) / 2
			if i == 0 {
				d.Mode, d.DataBytes, d.StoredBytes, d.ZeroBytes, d.ReusedBytes = chain.ModeFull, 12<<30, 7<<30, 0, 0
			} else {
				heat := []byte(strings.Repeat("0", 64))
				for range random.IntN(9) {
					heat[int(random.ExpFloat64()*12)%64] = "0123456789abcdef"[random.IntN(16)]
				}
				d.Heat = string(heat)
			}
			d.Habit = chain.HabitOf(all, disk)
			if seed == 1 && i == n-1 && k == 0 { // encrypted for ransom
				d.DataBytes, d.ReusedBytes, d.StoredBytes = 9<<30, 0, 9<<30
			}
			m.Disks = append(m.Disks, d)
		}
		all = append(all, m)
	}
	return all
}

// browser is one Chromium for all pages.
func browser(t *testing.T) context.Context {
	t.Helper()
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath("chromium"), chromedp.NoSandbox, chromedp.UserDataDir(t.TempDir()))
	alloc, end := chromedp.NewExecAllocator(t.Context(), opts...)
	t.Cleanup(end)
	ctx, end := chromedp.NewContext(alloc)
	t.Cleanup(func() {
		if err := chromedp.Cancel(ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("the browser: %v", err)
		}
		end()
	})
	if err := chromedp.Do(ctx); err != nil {
		t.Fatal(err)
	}
	return ctx
}

// watched is what went on beside the page itself.
type watched struct {
	sync.Mutex
	all []string
}

func (w *watched) note(format string, args ...any) {
	w.Lock()
	defer w.Unlock()
	w.all = append(w.all, fmt.Sprintf(format, args...))
}

// TestPages looks at the pages in a real browser: nothing is loaded, no error, nothing
// that keeps people from reading, no wider than the window, and each number the JSON's.
func TestPages(t *testing.T) {
	t.Parallel()
	axe, err := os.ReadFile("../.cache/axe-4.14.1.js") // scripts/axe fetches it
	if err != nil {
		t.Fatal(err)
	}
	r := made(t)
	dir := t.TempDir()
	paths := write(t, r, dir)
	ctx := browser(t)
	for i, path := range paths[:4] { // the others are like the fourth
		for k, scheme := range []string{"light", "dark"} {
			widths := []int64{390, 1440}
			if i > 0 { // the first has all that the others have
				widths = widths[k : k+1]
			}
			for _, width := range widths {
				t.Run(fmt.Sprintf("%s/%d/%s", filepath.Base(path), width, scheme), func(t *testing.T) {
					lookAt(t, ctx, r, string(axe), path, width, scheme)
				})
			}
		}
	}
}

// madeRun is a run of drills of which one passed, one failed, and one proved nothing; the
// guest's screen and console are hostile.
func madeRun() *record.Run {
	ms := func(n int64) *int64 { return &n }
	run := &record.Run{Format: record.RunFormat, Version: 1, Run: chain.NewUUID(), Begun: now, Ended: now.Add(time.Hour), Status: 3, Verdict: record.VerdictFailed}
	for i, v := range []record.Verdict{record.VerdictPassed, record.VerdictFailed, record.VerdictIncomplete} {
		status := []record.Status{record.Passed, record.Failed, record.Skipped}[i]
		d := record.Drilled{Stored: i == 0, Signed: i == 0, Record: record.Record{
			UUID: chain.NewUUID(), Domain: "<img src=x onerror=alert(1)>", Checkpoint: fmt.Sprintf("c%d", i), CheckpointUUID: chain.NewUUID(), Created: now,
			Host: record.Host{Name: "hv1"}, AskedBy: "an auditor", Verdict: v, Programs: map[string]string{"qemu-img": "7.2"},
			RTO: record.RTO{FirstByte: ms(12), Restore: ms(754_000)}, RPO: record.RPO{Age: 4000, LongestGap: 90_000},
			Steps: []record.Step{
				{Step: record.StepChunks, Status: record.Passed, Duration: 1234, Bytes: 5 << 30},
				{Step: record.StepBoot, Status: status, Reason: "a reason", WhatToDo: "do this", Duration: 61_000, Details: map[string]string{"machine": "q35"},
					Kept: []record.Kept{{Name: "console.log", Kind: "console"}, {Name: "screen.png", Kind: "screen"}, {Name: "gone.png", Kind: "screen"}}},
			},
		}}
		run.Drills = append(run.Drills, d)
	}
	return run
}

// TestDrillPage looks at the page of a run of drills likewise.
func TestDrillPage(t *testing.T) {
	t.Parallel()
	axe, err := os.ReadFile("../.cache/axe-4.14.1.js")
	if err != nil {
		t.Fatal(err)
	}
	run := madeRun()
	kept := func(name string) ([]byte, error) {
		switch name {
		case "console.log":
			return []byte("</pre><script>alert(1)</script>\x1b[31mlogin:\x00\xff\n"), nil
		case "screen.png":
			return base64.StdEncoding.DecodeString("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
		}
		return nil, os.ErrNotExist
	}
	var buf bytes.Buffer
	if err := DrillHTML(&buf, run, time.UTC, "imgbackup test", kept); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"login:", "data:image/png;base64,", "It can be restored", "What to do:"} {
		if !strings.Contains(buf.String(), want) {
			t.Errorf("%q is not on the page", want)
		}
	}
	path := filepath.Join(t.TempDir(), "drill.html")
	if err := os.WriteFile(path, buf.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx := browser(t)
	lookAt(t, ctx, run, string(axe), path, 390, "dark")
	lookAt(t, ctx, run, string(axe), path, 1440, "light")
}

// write writes the report as one page and as several.
func write(t *testing.T, r *Report, dir string) []string {
	t.Helper()
	one := filepath.Join(dir, "one.html")
	var buf bytes.Buffer
	if err := r.HTML(&buf); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(one, buf.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	paths := []string{one}
	err := r.Pages(func(name string, write func(io.Writer) error) error {
		var buf bytes.Buffer
		err := write(&buf)
		path := filepath.Join(dir, name)
		if strings.Contains(name, "/") {
			t.Errorf("a page is named %q", name)
			return nil
		}
		paths = append(paths, path)
		return errors.Join(err, os.WriteFile(path, buf.Bytes(), 0o600))
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(paths) != 2+len(r.Domains) {
		t.Fatalf("%d pages", len(paths))
	}
	return paths
}

// lookAt opens a page in a window of its own.
func lookAt(t *testing.T, ctx context.Context, r any, axe, path string, width int64, scheme string) {
	ctx, end := chromedp.NewContext(ctx)
	defer end()
	var w watched
	fatal := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	fatal(chromedp.Listen(ctx, func(ev any) {
		switch ev := ev.(type) {
		case *runtime.EventConsoleAPICalled:
			w.note("the console: %s", ev.Type)
		case *runtime.EventExceptionThrown:
			w.note("an exception: %s", ev.ExceptionDetails.Text)
		case *network.EventRequestWillBeSent:
			if !strings.HasPrefix(ev.Request.URL, "file://") && !strings.HasPrefix(ev.Request.URL, "data:") {
				w.note("a request to %s", ev.Request.URL)
			}
		}
	}))
	_, err := chromedp.Call(ctx, network.Enable, network.EnableParams{})
	fatal(err)
	_, err = chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
	fatal(err)
	fatal(chromedp.Do(ctx, chromedp.EmulateViewport(width, 900), chromedp.Navigate((&url.URL{Scheme: "file", Path: path}).String())))
	numbers, err := chromedp.Run(ctx, chromedp.Evaluate[[]shownNumber](`[...document.querySelectorAll("[data-json]")].map(e => ({
		path: e.dataset.json, value: e.dataset.value ?? e.value, text: e.textContent, drawn: e.tagName == "rect"}))`))
	fatal(err)
	wide, err := chromedp.Run(ctx, chromedp.Evaluate[string](
		`document.documentElement.scrollWidth > innerWidth ? "it is " + document.documentElement.scrollWidth + " wide" : ""`))
	fatal(err)
	_, err = chromedp.Run(ctx, chromedp.Evaluate[chromedp.Void](axe))
	fatal(err)
	violations, err := chromedp.Run(ctx, chromedp.Evaluate[string](
		`axe.run({runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}).then(r =>
			JSON.stringify(r.violations.map(v => v.id + ": " + v.nodes.slice(0, 3).map(n => n.html).join(" "))))`, chromedp.EvalAwaitPromise))
	fatal(err)
	pdf, err := chromedp.Run(ctx, chromedp.PrintToPDF())
	fatal(err)
	if violations != "[]" {
		t.Errorf("axe: %.3000s", violations)
	}
	if wide != "" {
		t.Errorf("in a window of %d: %s", width, wide)
	}
	if len(w.all) > 0 {
		t.Errorf("%q", w.all)
	}
	if !bytes.HasPrefix(pdf, []byte("%PDF-")) || len(pdf) < 10_000 {
		t.Errorf("%d bytes are printed", len(pdf))
	}
	compare(t, r, numbers)
}

// shownNumber is a number on a page.
type shownNumber struct {
	Path  string `json:"path"`
	Value string `json:"value"`
	Text  string `json:"text"`
	Drawn bool   `json:"drawn"`
}

// compare looks each number up in the JSON.
func compare(t *testing.T, r any, numbers []shownNumber) {
	t.Helper()
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	var doc any
	if err := dec.Decode(&doc); err != nil {
		t.Fatal(err)
	}
	if len(numbers) == 0 {
		t.Error("there is no number on the page")
	}
	for _, n := range numbers {
		want, ok := lookUp(doc, strings.Split(n.Path, ".")).(json.Number)
		if !ok || want.String() != n.Value {
			t.Errorf("%s is %s on the page, and %s", n.Path, n.Value, want)
			continue
		}
		value, err := want.Int64()
		said := n.Text == n.Value || n.Text == bytesText(value) || n.Text == span(time.Duration(value)*time.Second) || n.Text == milliseconds(value) || n.Drawn && strings.HasSuffix(n.Text, " "+bytesText(value))
		if err != nil || !said {
			t.Errorf("%s is %s, and the page says %q", n.Path, want, n.Text)
		}
	}
}

func lookUp(v any, path []string) any {
	if len(path) == 0 {
		return v
	}
	switch v := v.(type) {
	case map[string]any:
		return lookUp(v[path[0]], path[1:])
	case []any:
		var i int
		if _, err := fmt.Sscan(path[0], &i); err == nil && i >= 0 && i < len(v) {
			return lookUp(v[i], path[1:])
		}
	}
	return nil
}
