// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Charts are drawn into a box of fixed units that is stretched to the width of the page,
// so that they hold no text; strokes are not stretched. Dates and sizes stand beside them.
const (
	chartWidth  = 1000
	chartHeight = 100
	laneHeight  = 12
	// shown is how many checkpoints charts have: the newest. The table has all.
	shown = 120
)

// charts are the pictures of one domain.
type charts struct {
	First, Last time.Time // of what is shown
	Count       int

	Tree        []branch
	TreeHeight  int
	Changes     []bar
	MostChange  number // the largest
	Parts       []bar  // new data, known data and zeros, one above the other
	MostParts   number
	Heat        []heat
	GrowthLine  string // a path
	GrowthAhead string
	Calendar    []cell
	Weeks       int
	CalendarEnd time.Time
	CalendarDay time.Time // its first
}

// branch is a checkpoint in the tree: a dot, and a line from the one that it follows.
type branch struct {
	Line, Dot string
	Class     string
	Title     string
}

// bar is a bar of a chart.
type bar struct {
	X, Y, W, H float64
	Class      string
	Title      string
	Number     number
}

// number is a number of the report and where its JSON has it.
type number struct {
	Path  string
	Value int64
}

// heat is where one disk changed: one path for each level.
type heat struct {
	Disk   string
	Levels []heatLevel
	Rows   int
	Text   string // the same in words
}

type heatLevel struct {
	Opacity float64
	Path    string
}

// cell is a day on which there was a drill.
type cell struct {
	X, Y    int // of the picture
	Verdict string
	Sign    string
	Title   string
}

func (d *Domain) draw(index int, zone *time.Location, now time.Time) *charts {
	skip := max(0, len(d.Checkpoints)-shown)
	all := d.Checkpoints[skip:]
	c := &charts{Count: len(all)}
	if len(all) > 0 {
		c.First, c.Last = all[0].Created, all[len(all)-1].Created
		c.drawTree(all)
		c.drawBars(all, fmt.Sprintf("domains.%d.checkpoints", index), skip)
		c.drawHeat(all)
	}
	c.drawGrowth(d, now)
	c.drawCalendar(d, zone, now)
	return c
}

func (c *charts) drawTree(all []*Checkpoint) {
	place := make(map[string]*Checkpoint, len(all))
	lanes := 0
	var used []int // lanes, in the order in which they are drawn
	for _, p := range all {
		place[p.Checkpoint] = p
		if !slices.Contains(used, p.Lane) {
			used = append(used, p.Lane)
		}
	}
	lanes = len(used)
	c.TreeHeight = max(lanes, 1) * laneHeight
	whole := max(c.Last.Sub(c.First).Seconds(), 1)
	at := func(p *Checkpoint) (x, y float64) {
		return 6 + (chartWidth-12)*p.Created.Sub(c.First).Seconds()/whole, float64(slices.Index(used, p.Lane)*laneHeight + laneHeight/2)
	}
	for _, p := range all {
		x, y := at(p)
		b := branch{Dot: fmt.Sprintf("M%.1f %.1fh0", x, y), Class: "dot " + p.mark(), Title: p.title()}
		if q := place[p.Parent]; q != nil {
			px, py := at(q)
			b.Line = fmt.Sprintf("M%.1f %.1fC%.1f %.1f %.1f %.1f %.1f %.1f", px, py, (px+x)/2, py, (px+x)/2, y, x, y)
		}
		c.Tree = append(c.Tree, b)
	}
}

// mark is how a checkpoint is marked in the tree.
func (p *Checkpoint) mark() string {
	switch {
	case p.LostBytes > 0:
		return "bad"
	case slices.ContainsFunc(p.Disks, func(d Disk) bool { return len(d.Unusual) > 0 }):
		return "warning"
	case p.Kind != "archive":
		return "empty"
	}
	return "good"
}

func (p *Checkpoint) title() string {
	t := p.Checkpoint + ", " + p.Created.UTC().Format("2006-01-02 15:04 UTC")
	if p.Parent != "" {
		t += ", after " + p.Parent
	}
	return t
}

func (c *charts) drawBars(all []*Checkpoint, path string, skip int) {
	num := func(i int, field string, value int64) number {
		return number{fmt.Sprintf("%s.%d.%s", path, skip+i, field), value}
	}
	for i, p := range all {
		if n := num(i, "change_bytes", p.ChangeBytes); n.Value >= c.MostChange.Value {
			c.MostChange = n
		}
		if p.ChangeBytes == 0 && slices.ContainsFunc(all, func(p *Checkpoint) bool { return p.ChangeBytes > 0 }) {
			continue // a full beside incrementals would hide them
		}
		for _, n := range []struct {
			field string
			value int64
		}{{"data_bytes", p.DataBytes}, {"zero_bytes", p.ZeroBytes}} {
			if n.value >= c.MostParts.Value {
				c.MostParts = num(i, n.field, n.value)
			}
		}
	}
	w := float64(chartWidth) / float64(max(len(all), 20))
	add := func(bars []bar, i int, base, value, most int64, class, what string, n number) []bar {
		if value <= 0 || most <= 0 {
			return bars
		}
		h := max(float64(value)/float64(most)*chartHeight, 0.6)
		y := chartHeight - float64(base)/float64(most)*chartHeight - h
		return append(bars, bar{w * (float64(i) + 0.1), y, w * 0.8, h, class, all[i].Checkpoint + ": " + what + " " + bytesText(n.Value), n})
	}
	for i, p := range all {
		c.Changes = add(c.Changes, i, 0, p.ChangeBytes, c.MostChange.Value, "change", "changed", num(i, "change_bytes", p.ChangeBytes))
		c.Changes = add(c.Changes, i, 0, p.StoredBytes, c.MostChange.Value, "stored", "stored", num(i, "stored_bytes", p.StoredBytes))
		c.Parts = add(c.Parts, i, 0, p.NewBytes, c.MostParts.Value, "new", "new data", num(i, "new_bytes", p.NewBytes))
		c.Parts = add(c.Parts, i, p.NewBytes, p.DataBytes-p.NewBytes, c.MostParts.Value, "known", "data, with what was known,", num(i, "data_bytes", p.DataBytes))
		c.Parts = add(c.Parts, i, p.DataBytes, p.ZeroBytes, c.MostParts.Value, "zero", "zeros", num(i, "zero_bytes", p.ZeroBytes))
	}
	c.Changes, c.Parts = cutOff(c.Changes), cutOff(c.Parts)
}

// cutOff ends bars at the top of the chart.
func cutOff(bars []bar) []bar {
	bars = slices.DeleteFunc(bars, func(b bar) bool { return b.Y+b.H <= 0 })
	for i := range bars {
		if b := &bars[i]; b.Y < 0 {
			b.H, b.Y = b.H+b.Y, 0
		}
	}
	return bars
}

func (c *charts) drawHeat(all []*Checkpoint) {
	disks := make(map[string][]string) // by column
	var names []string
	for i, p := range all {
		for _, d := range p.Disks {
			if d.Heat == "" {
				continue
			}
			if disks[d.Disk] == nil {
				disks[d.Disk] = make([]string, len(all))
				names = append(names, d.Disk)
			}
			disks[d.Disk][i] = d.Heat
		}
	}
	slices.Sort(names)
	for _, name := range names {
		c.Heat = append(c.Heat, drawDisk(name, disks[name]))
	}
}

const heatDigits = "0123456789abcdef"

func drawDisk(name string, columns []string) heat {
	h := heat{Disk: name}
	var paths [16]strings.Builder
	var often []int
	w := float64(chartWidth) / float64(max(len(columns), 20))
	for i, column := range columns {
		h.Rows = max(h.Rows, len(column))
		for len(often) < len(column) {
			often = append(often, 0)
		}
		for y := 0; y < len(column); {
			end := y + 1
			for end < len(column) && column[end] == column[y] {
				end++
			}
			if level := max(strings.IndexByte(heatDigits, column[y]), 0); level > 0 {
				fmt.Fprintf(&paths[level], "M%.1f %dh%.1fv%dh-%.1fz", w*float64(i), y, w, end-y, w)
				for k := y; k < end; k++ {
					often[k]++
				}
			}
			y = end
		}
	}
	for level := range paths {
		if paths[level].Len() > 0 {
			h.Levels = append(h.Levels, heatLevel{0.15 + 0.85*float64(level)/15, paths[level].String()})
		}
	}
	h.Text = heatText(often)
	return h
}

// heatText says which part of a disk changes most often.
func heatText(often []int) string {
	busy := 0
	for _, n := range often {
		if n > 0 {
			busy++
		}
	}
	if busy == 0 {
		return "nothing changed"
	}
	at := slices.Index(often, slices.Max(often))
	return fmt.Sprintf("%d of %d parts changed, most often the one at %d%% of the disk", busy, len(often), 100*at/len(often))
}

func (c *charts) drawGrowth(d *Domain, now time.Time) {
	if len(d.Checkpoints) < 2 {
		return
	}
	first := d.Checkpoints[0].Created
	end, top := now, d.StoredBytes
	if d.Growth != nil {
		end, top = now.Add(30*day), max(d.Growth.In30, d.StoredBytes)
	}
	whole := max(end.Sub(first).Seconds(), 1)
	x := func(t time.Time) float64 { return min(max(chartWidth*t.Sub(first).Seconds()/whole, 0), chartWidth) }
	y := func(n int64) float64 { return chartHeight - (chartHeight-2)*float64(n)/float64(max(top, 1)) }
	var b strings.Builder
	var total int64
	every := 1 + len(d.Checkpoints)/400
	for i, p := range d.Checkpoints {
		total += p.StoredBytes
		if i%every == 0 || i == len(d.Checkpoints)-1 {
			fmt.Fprintf(&b, "%c%.1f %.1f", "ML"[min(i, 1)], x(p.Created), y(total))
		}
	}
	fmt.Fprintf(&b, "L%.1f %.1f", x(now), y(total))
	c.GrowthLine = b.String()
	if d.Growth != nil {
		c.GrowthAhead = fmt.Sprintf("M%.1f %.1fL%.1f %.1f", x(now), y(total), x(end), y(d.Growth.In30))
	}
}

// cellSize is the width of a week, and the height of a weekday.
const cellSize = 14

// drawCalendar has a column for each of the last 53 weeks, and a row for each weekday.
func (c *charts) drawCalendar(d *Domain, zone *time.Location, now time.Time) {
	c.Weeks = 53
	c.CalendarEnd = now.In(zone)
	sunday := (int(c.CalendarEnd.Weekday()) + 6) % 7 // since Monday
	y, m, today := c.CalendarEnd.Date()
	first := time.Date(y, m, today-sunday-7*(c.Weeks-1), 0, 0, 0, 0, zone)
	c.CalendarDay = first
	for _, drill := range d.Drills {
		y, m, day := drill.Begun.In(zone).Date()
		days := int(time.Date(y, m, day, 12, 0, 0, 0, zone).Sub(first).Hours() / 24)
		if drill.Begun.Before(first) || days >= 7*c.Weeks {
			continue
		}
		c.Calendar = append(c.Calendar, cell{
			days / 7 * cellSize, days % 7 * cellSize, drill.Verdict, sign(drill.Verdict),
			fmt.Sprintf("%s: %s %s", drill.Begun.In(zone).Format("2006-01-02 15:04"), drill.Checkpoint, drill.Verdict),
		})
	}
}

func sign(verdict string) string {
	switch verdict {
	case "passed":
		return "✓"
	case "failed":
		return "✗"
	}
	return "?"
}
