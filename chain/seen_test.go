// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/objstore"
)

func sampleSeen() *Seen {
	return &Seen{
		Domain: "web & co", Host: Host{Name: "host", ID: "abcd"}, BootID: "boot", Time: time.Date(2026, 11, 21, 7, 49, 0, 0, time.UTC),
		Checkpoint: CheckpointRef{Name: "one", UUID: NewUUID()},
		Disks:      []SeenDisk{{Name: "vda", Files: []FileState{{Path: "/vm/\xff.raw", Device: 1 << 63, Inode: 7, Size: 5, Mtime: -1, Ctime: 9}}}, {Name: "vdb"}},
	}
}

func TestSeen(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	if got, err := r.Seen(t.Context(), "web & co"); got != nil || err != nil {
		t.Errorf("nothing was seen: %v, %v", got, err)
	}
	for range 2 {
		s := sampleSeen()
		if err := r.PutSeen(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		got, err := r.Seen(t.Context(), "web & co")
		if err != nil || !reflect.DeepEqual(got, s) {
			t.Errorf("got %+v, %v; want %+v", got, err, s)
		}
	}
	key := seenKey("web & co")
	if k := ParseKey(key); k.Kind != KeySeen || k.Domain != "web & co" {
		t.Errorf("%s: %+v", key, k)
	}
	if domains, err := r.Domains(t.Context()); err != nil || len(domains) != 0 {
		t.Errorf("no domain has a checkpoint: %v, %v", domains, err)
	}
	data := get(t, r.Store, key)
	put(t, r.Store, seenKey("other"), data)
	if _, err := r.Seen(t.Context(), "other"); !archive.IsDamage(err) {
		t.Errorf("another domain's: %v", err)
	}
	put(t, r.Store, key, bytes.Replace(data, []byte(`"vda"`), []byte(`"vdc"`), 1))
	if _, err := r.Seen(t.Context(), "web & co"); !archive.IsDamage(err) {
		t.Errorf("damaged: %v", err)
	}
	if err := r.Store.Put(t.Context(), key, bytes.NewReader(nil), objstore.PutOptions{Mode: objstore.Replace}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Seen(t.Context(), "web & co"); !archive.IsDamage(err) {
		t.Errorf("empty: %v", err)
	}
}

func TestSeenValidate(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	for name, break_ := range map[string]func(s *Seen){
		"domain":     func(s *Seen) { s.Domain = "a/b" },
		"host":       func(s *Seen) { s.Host.Name = "" },
		"time":       func(s *Seen) { s.Time = time.Time{} },
		"checkpoint": func(s *Seen) { s.Checkpoint.UUID = "x" },
		"disk":       func(s *Seen) { s.Disks[0].Name = "../x" },
		"path":       func(s *Seen) { s.Disks[0].Files[0].Path = "" },
		"size":       func(s *Seen) { s.Disks[0].Files[0].Size = -1 },
		"files":      func(s *Seen) { s.Disks[0].Files = make([]FileState, 3000) },
		"disks":      func(s *Seen) { s.Disks = make([]SeenDisk, 5000) },
	} {
		s := sampleSeen()
		break_(s)
		if err := r.PutSeen(t.Context(), s); err == nil {
			t.Errorf("%s: valid", name)
		}
	}
}
