// SPDX-License-Identifier: Apache-2.0

package request_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/pull"
	"github.com/imgbackup/imgbackup/backup/push"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
	"github.com/imgbackup/imgbackup/request"
)

const domainXML = `<domain type='kvm'>
  <name>web</name>
  <uuid>6b0e8a4a-9b0c-4f0e-8d1c-0c5f3f0a1b2c</uuid>
  <os><type>hvm</type></os>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/vm/a.qcow2'/><target dev='vda' bus='virtio'/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/vm/b.raw'/><target dev='vdb' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='/vm/cd.iso'/><target dev='sda' bus='sata'/><readonly/></disk>
  </devices>
</domain>`

// write writes files of XML, and returns the first one's path.
func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// wrong demands an error of usage with some text in it.
func wrong(t *testing.T, what string, err error, text string) {
	t.Helper()
	if !errors.Is(err, usage.ErrWrong) || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: got %v, want wrong usage with %q", what, err, text)
	}
}

func TestDisks(t *testing.T) {
	t.Parallel()
	b := request.Backup{Domain: "web", Disks: []string{
		"vda=/vm/a,,b.qcow2,format=qcow2,incremental=c1,keyfile=k", "vdb=b=c,format=raw,backupmode=full"}}
	job, err := b.Job(nil)
	want := []backup.DiskRequest{
		{Disk: "vda", Path: "/vm/a,b.qcow2", Format: qcow2.Qcow2, Since: "c1", KeyFile: "k"},
		{Disk: "vdb", Path: "b=c", Format: qcow2.Raw, Mode: backup.Full},
	}
	if err != nil || !reflect.DeepEqual(job.Request.Disks, want) || job.Request.Mode != backup.Auto || job.Targets != nil {
		t.Errorf("got %+v, %v", job, err)
	}
	for value, text := range map[string]string{
		"":                                  "want TARGET=PATH",
		"vda":                               "want TARGET=PATH",
		"=a,format=raw":                     "want TARGET=PATH",
		"vda=,format=raw":                   "want TARGET=PATH",
		"vda=a":                             "no format",
		"vda=a,format=vpc":                  `format "vpc": want qcow2, raw, `,
		"vda=a,format=raw,format=raw":       "format is given twice",
		"vda=a,format=raw,oops":             `"oops" is no key=value`,
		"vda=a,format=raw,cache=none":       `unknown key "cache": want format, keyfile, backupmode, incremental, bitmap or trustraw`,
		"vda=a,format=raw,backup=no":        "unknown key",
		"vda=a,format=raw,exportname=x":     "unknown key",
		"vda=a,format=raw,backupmode=never": `backupmode "never": want full or incremental`,
		"vda=a,format=raw,incremental=":     "incremental= names no checkpoint",
		"vda=a,format=raw,keyfile=":         "keyfile= names no file",
	} {
		b := request.Backup{Domain: "web", Disks: []string{value}}
		_, err := b.Job(nil)
		wrong(t, value, err, text)
	}
	if _, err := request.Images([]string{"vda=a,format=raw,incremental=c1"}); err == nil {
		t.Error("a disk that is only opened was incremental")
	}
}

func TestTargets(t *testing.T) {
	t.Parallel()
	b := request.Backup{Domain: "web", Disks: []string{"vda=a,format=qcow2"},
		Targets: []string{"vda=out,driver=qcow2,backing=old,backingformat=raw,cluster_size=128k"}}
	job, err := b.Job(nil)
	want := []push.Target{{Disk: "vda", Path: "out", Format: qcow2.Qcow2, ClusterSize: 128 << 10,
		Backing: &qcow2.CreateBacking{File: "old", Format: qcow2.Raw}}}
	if err != nil || !reflect.DeepEqual(job.Targets, want) {
		t.Errorf("got %+v, %v", job.Targets, err)
	}
	for value, text := range map[string]string{
		"vda":                           "want TARGET=PATH",
		"vda=o,driver=vmdk":             `driver "vmdk": want qcow2 or raw`,
		"vda=o,backing=b":               "go together",
		"vda=o,backing=":                "backing= names no file",
		"vda=o,cluster_size=3000":       "power of two",
		"vda=o,reuse=perhaps":           "want yes or no",
		"vda=o,format=raw":              `unknown key "format": want driver, backing, backingformat, cluster_size or reuse`,
		"vda=o,driver=raw,driver=qcow2": "twice",
	} {
		b := request.Backup{Domain: "web", Disks: b.Disks, Targets: []string{value}}
		_, err := b.Job(nil)
		wrong(t, value, err, text)
	}
	b.Disks = append(b.Disks, "vdb=b,format=raw")
	_, err = b.Job(nil)
	wrong(t, "a disk without a target", err, "disk vdb has no --target")
}

func TestWords(t *testing.T) {
	t.Parallel()
	for what, b := range map[string]request.Backup{
		"--mode":        {Mode: "differential"},
		"--compression": {Compression: "most"},
		"--limit-rate":  {LimitRate: "0"},
		"--max-lock":    {Engine: backup.Request{ImageOptions: backup.ImageOptions{MaxLock: -1}}},
	} {
		wrong(t, what, b.Check(), what)
	}
	b := request.Backup{Domain: "web", Disks: []string{"vda=a,format=raw"}, LimitRate: "50M", Engine: backup.Request{Since: "c1"}}
	job, err := b.Job(nil)
	if err != nil || job.Request.Mode != backup.Incremental || job.Request.RateLimit != 50e6 {
		t.Errorf("got %+v, %v", job.Request, err)
	}
	b = request.Backup{Disks: b.Disks}
	_, err = b.Job(nil)
	wrong(t, "no domain", err, "no domain is named")
}

// What a definition says is taken, and --disk says what differs.
func TestDefinition(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	web := write(t, dir, "web.xml", domainXML)
	b := request.Backup{XML: request.Files{Domain: web}, Disks: []string{"vdb,backup=no"}}
	job, err := b.Job(nil)
	if err != nil || job.Request.Domain != "web" || len(job.Request.Disks) != 1 || job.Request.Disks[0].Path != "/vm/a.qcow2" ||
		len(job.Request.LeftOut) != 2 || len(job.Request.Files) != 1 {
		t.Errorf("got %+v, %v", job, err)
	}
	b.XML.Domain = request.Stdin
	if again, err := b.Job(strings.NewReader(domainXML)); err != nil || len(again.Request.Disks) != 1 {
		t.Errorf("got %+v, %v", again, err)
	}
	b.Disks = []string{"vda,backup=no", "vdb,backup=no"}
	b.XML.Domain = web
	if job, err := b.Job(nil); !errors.Is(err, request.ErrNoDisks) || len(job.Request.LeftOut) != 3 {
		t.Errorf("got %+v, %v", job, err)
	}
	b.XML.Domain = write(t, dir, "empty.def", strings.Replace(domainXML, "file='/vm/b.raw'", "file=''", 1))
	b.Disks = nil
	if job, err := b.Job(nil); err == nil || errors.Is(err, usage.ErrWrong) || !strings.Contains(err.Error(), "disk vdb is a disk without a source") {
		t.Errorf("a disk without a source: got %+v, %v", job.Request.Disks, err)
	}
	b.XML.Domain = web
	b.Disks = []string{"vdz,backup=no"}
	_, err = b.Job(nil)
	wrong(t, "unknown disk", err, "has no such disk")
	b.Domain = "mail"
	_, err = b.Job(nil)
	wrong(t, "another's definition", err, "is that of web, not of mail")
	b = request.Backup{XML: request.Files{Domain: request.Stdin, Backup: request.Stdin}}
	_, err = b.Job(strings.NewReader(domainXML))
	wrong(t, "two from stdin", err, "only one file")
	write(t, dir, "notes.txt", "")
	if files, err := request.Definitions(dir); err != nil || !reflect.DeepEqual(files, []string{"web.xml"}) {
		t.Errorf("got %v, %v", files, err)
	}
	_, err = request.Definitions(t.TempDir())
	wrong(t, "an empty folder", err, "no definition")
}

func TestExport(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e := request.Export{Domain: "web", Disks: []string{"vda=a,format=qcow2,exportname=x,exportbitmap=y,checkpoint=no"},
		Engine: backup.Request{Checkpoint: "c1"}}
	job, err := e.Job(nil)
	if err != nil || !reflect.DeepEqual(job.Names, []pull.Names{{Disk: "vda", Export: "x", Bitmap: "y"}}) || !job.Request.Disks[0].NoCheckpoint {
		t.Errorf("got %+v, %v", job, err)
	}
	files := request.Files{Domain: write(t, dir, "web.xml", domainXML), Backup: write(t, dir, "pull.xml",
		`<domainbackup mode='pull'><server transport='tcp' name='localhost' port='10809'/><disks><disk name='vda' backup='yes' type='file'
		exportname='x'><scratch file='/s'/></disk><disk name='vdb' backup='no'/></disks></domainbackup>`)}
	e = request.Export{XML: files}
	job, err = e.Job(nil)
	if err != nil || job.Server == nil || job.Server.Address != "localhost:10809" || len(job.Scratch) != 1 || job.Names[0].Export != "x" {
		t.Errorf("got %+v, %v", job, err)
	}
	e.TLS = true
	_, err = e.Job(nil)
	wrong(t, "TLS that the XML does not know", err, "--tls-cert needs")
	b := request.Backup{XML: files}
	_, err = b.Job(nil)
	wrong(t, "a pull that is to be archived", err, "imgbackup export does that")
	e = request.Export{Domain: "web", Disks: []string{"vda=a,format=raw"}, Engine: backup.Request{Description: "d"}}
	_, err = e.Job(nil)
	wrong(t, "a description of nothing", err, "--checkpoint")
}

func TestRedefine(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	good := write(t, dir, "good.xml", `<domaincheckpoint><name>c1</name><creationTime>1700000000</creationTime>
		<disks><disk name='vda' checkpoint='bitmap' bitmap='c1.0123456789abcdef'/><disk name='vdb' checkpoint='no'/></disks></domaincheckpoint>`)
	r, err := request.Redefine(backup.Request{Domain: "web"}, good, nil)
	if err != nil || r.Definition.Name != "c1" || len(r.Definition.Bitmaps) != 1 {
		t.Fatalf("got %+v, %v", r, err)
	}
	wrong(t, "an image that nobody knows", r.FindDisks(nil), "where is the image of disk vda")
	last := []backup.DiskRequest{{Disk: "vda", Path: "/vm/a", Format: qcow2.Qcow2}, {Disk: "vdb", Path: "/vm/b", Format: qcow2.Qcow2}}
	if err := r.FindDisks(last); err != nil || !reflect.DeepEqual(r.Request.Disks, last[:1]) {
		t.Errorf("got %+v, %v", r.Request.Disks, err)
	}
	for text, xml := range map[string]string{
		"does not name":     `<domaincheckpoint><creationTime>1</creationTime></domaincheckpoint>`,
		"creationTime":      `<domaincheckpoint><name>c1</name></domaincheckpoint>`,
		"no disk":           `<domaincheckpoint><name>c1</name><creationTime>1</creationTime></domaincheckpoint>`,
		"domaincheckpoint>": `<domain/>`,
	} {
		_, err := request.Redefine(backup.Request{}, write(t, t.TempDir(), "x.xml", xml), nil)
		wrong(t, xml, err, text)
	}
}
