// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/imgbackup/imgbackup/drill"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/guestfs"
)

// Filesystems is the step that finds and checks the file systems.
func (l *Look) Filesystems() drill.Step { return filesystems{l} }

type filesystems struct{ *Look }

func (filesystems) Name() string { return record.StepFilesystems }

func (f filesystems) Run(ctx context.Context, s *drill.Subject) (drill.Result, error) {
	var found *drill.Result
	res, err := f.withAppliance(ctx, s, func(ctx context.Context, g *guestfs.Session) (drill.Result, error) {
		res, err := f.check(ctx, g)
		if err != nil || failed(&res) || len(f.Expect) == 0 {
			return res, err
		}
		files, err := f.files(ctx, s, g)
		found = &files
		return res, err
	})
	if err == nil && s.Fault() == nil { // else whatever it has found was not the guest's
		f.found, f.foundFor = found, subject(s)
	}
	return res, err
}

const (
	todoFilesystem = "drill an older checkpoint to learn since when it is so; the guest's own disk may have the same damage: check it there, while it is backed up"
	todoNothing    = "if these disks are to hold no file system, leave the step out by --skip filesystems; else look at the disk: imgbackup serve"
	todoUnseen     = "install the package that the reason names, and drill again; or leave the step out by --skip filesystems"
	todoDynamic    = "leave the step out by --skip filesystems, and let --boot-screen, --boot-agent or --command tell whether the guest is well"
	todoLocked     = "give the key of a LUKS volume by --luks-key; else leave the step out by --skip filesystems, and let --boot-pattern or --command tell whether it can be unlocked"
)

// check looks at every file system.
func (f filesystems) check(ctx context.Context, g *guestfs.Session) (res drill.Result, err error) {
	d := &details{m: make(map[string]string)}
	res.Details = d.m
	tables, err := g.Tables(ctx)
	if err != nil {
		return res, err
	}
	for _, t := range tables {
		if t.Kind != "" {
			d.add("partitions", "%s: %s", t.Disk, t.Kind)
		}
	}
	volumes, err := g.Volumes(ctx)
	if err != nil {
		return res, err
	}
	sum := &summary{}
	for _, v := range volumes {
		if err := f.one(ctx, g, v, d, sum); err != nil {
			return res, err
		}
	}
	switch {
	case len(sum.damaged) > 0:
		return sum.result(res, drill.Fail(strings.Join(sum.damaged, "; "), todoFilesystem)), nil
	case sum.dynamic > 0:
		return sum.result(res, drill.Skip(fmt.Sprintf("%d partitions are of dynamic disks of Windows (LDM), which are not looked into", sum.dynamic), todoDynamic)), nil
	case len(sum.unseen) > 0:
		return sum.result(res, drill.Skip(strings.Join(sum.unseen, "; "), todoUnseen)), nil
	case sum.checked+sum.mounted == 0 && sum.locked > 0:
		return sum.result(res, drill.Skip("all that is on the disks is encrypted", todoLocked)), nil
	case sum.checked+sum.mounted == 0:
		return sum.result(res, drill.Skip("there is no file system on the disks that is known", todoNothing)), nil
	}
	if err := systems(ctx, g, d, sum); err != nil {
		return res, err
	}
	return sum.result(res, drill.Pass(sum.text())), nil
}

// one looks at one volume.
func (f filesystems) one(ctx context.Context, g *guestfs.Session, v guestfs.Volume, d *details, sum *summary) error {
	where := fmt.Sprintf("%s %s on %s", v.Device, v.Type, strings.Join(v.Disks, " "))
	switch {
	case v.Opened:
		d.add("volume", "%s: encrypted, opened by its key", where)
		return nil
	case v.Encrypted():
		sum.locked++
		d.add("volume", "%s: encrypted, not looked into", where)
		return nil
	case v.Type == guestfs.TypeDynamic:
		sum.dynamic++
		d.add("volume", "%s: of a dynamic disk of Windows, not looked into", where)
		return nil
	case !v.HasFiles():
		d.add("volume", "%s", where)
		return nil
	}
	verdict, err := g.Check(ctx, v)
	if err != nil {
		return err
	}
	text := fmt.Sprintf("%s: %s (%s)", where, verdict.Health, verdict.Said)
	if verdict.Unclean {
		text += ", the guest had not unmounted it"
		sum.unclean++
	}
	d.add("volume", "%s", text)
	switch verdict.Health {
	case guestfs.Damaged:
		sum.damaged = append(sum.damaged, text)
	case guestfs.Clean:
		sum.checked++
	case guestfs.Unseen:
		sum.unseen = append(sum.unseen, text)
	default:
		sum.mounted++
	}
	return nil
}

// systems recognises operating systems.
func systems(ctx context.Context, g *guestfs.Session, d *details, sum *summary) error {
	all, err := g.Systems(ctx)
	var no *guestfs.CallError
	if errors.As(err, &no) { // it says nothing of the file systems
		d.add("system", "not recognised: %s", no.Said)
		return nil
	}
	for _, o := range all {
		name := o.Product
		if name == "" {
			name = strings.TrimSpace(o.Type + " " + o.Distro)
		}
		sum.systems = append(sum.systems, name)
		text := fmt.Sprintf("%s on %s", name, o.Root)
		if o.Hostname != "" {
			text += ", host " + o.Hostname
		}
		d.add("system", "%s", text)
	}
	return err
}

// summary is what there was in all.
type summary struct {
	checked, mounted, locked, unclean, dynamic int
	damaged, unseen, systems                   []string
}

func (s *summary) text() string {
	var parts []string
	if s.checked > 0 {
		parts = append(parts, fmt.Sprintf("%d file systems are clean", s.checked))
	}
	if s.mounted > 0 {
		parts = append(parts, fmt.Sprintf("%d could be mounted, and not be checked", s.mounted))
	}
	if s.locked > 0 {
		parts = append(parts, fmt.Sprintf("%d encrypted volumes were not looked into", s.locked))
	}
	if s.unclean > 0 {
		parts = append(parts, fmt.Sprintf("%d had not been unmounted", s.unclean))
	}
	text := strings.Join(parts, ", ")
	if len(s.systems) > 0 {
		text += "; " + strings.Join(s.systems, ", ")
	}
	return text
}

// result keeps what was counted, with the verdict.
func (s *summary) result(counted, r drill.Result) drill.Result {
	r.Bytes, r.Details = counted.Bytes, counted.Details
	return r
}

// details numbers what was found.
type details struct {
	m map[string]string
	n map[string]int
}

// maxDetails bounds how much of one kind is in a record: a guest can have as many
// volumes as it likes.
const maxDetails = 64

func (d *details) add(kind, format string, args ...any) {
	if d.n == nil {
		d.n = make(map[string]int)
	}
	d.n[kind]++
	if d.n[kind] > maxDetails {
		return
	}
	text := fmt.Sprintf(format, args...)
	if len(text) > 1000 {
		text = text[:1000] + "…"
	}
	d.m[fmt.Sprintf("%s_%d", kind, d.n[kind])] = strings.ToValidUTF8(text, "?")
}
