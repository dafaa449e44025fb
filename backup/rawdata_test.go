// SPDX-License-Identifier: Apache-2.0

package backup_test

import (
	"bytes"
	"os"
	"testing"
	"time"

	"github.com/imgbackup/imgbackup/backup"
	"github.com/imgbackup/imgbackup/backup/trust"
)

// Somebody says that only QEMU writes to the raw data file: its bitmaps are examined, and
// whatever shows that somebody else did is believed.
func TestTrustRawData(t *testing.T) {
	t.Parallel()
	yes := true
	for _, tt := range []struct {
		name string
		do   func(l *lab)
		code trust.Reason // ReasonTrusted: it goes by bitmap
	}{
		{"QEMU alone writes", func(l *lab) { l.write("vda", "write -P 2 1M 64k") }, trust.ReasonTrusted},
		{"written past it", func(l *lab) { l.patch("data", 2<<20, []byte("past every bitmap")) }, trust.ReasonDataFileRaw},
		{"written past it, and told to be older", func(l *lab) {
			l.patch("data", 0, bytes.Repeat([]byte("past every bitmap"), 60000))
			old := time.Now().Add(-time.Hour)
			l.must(os.Chtimes(l.path("data"), old, old))
		}, trust.ReasonContent},
		{"exchanged", func(l *lab) {
			old := time.Now().Add(-time.Hour)
			data, err := os.ReadFile(l.path("data"))
			l.must(err)
			l.must(os.WriteFile(l.path("new"), data, 0o600))
			l.must(os.Chtimes(l.path("new"), old, old))
			l.must(os.Rename(l.path("new"), l.path("data")))
		}, trust.ReasonDataFileRaw},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.create("vda", "8M", "-o", "data_file=data,data_file_raw=on")
			l.write("vda", "write -P 1 0 3M")
			d := l.disk("vda")
			d.TrustRawData = &yes
			l.backup("c1", d)
			m := l.manifest("c1")
			if data := m.Disks[0].TrustedData; data == nil || data.Path != l.path("data") {
				t.Fatalf("recorded: %+v", data)
			}
			tt.do(l)
			if tt.code == trust.ReasonTrusted {
				l.refused(trust.ReasonDataFileRaw, l.disk("vda")) // by default it stays by content
				l.trusted(l.backup("c2", d), "c1")
			} else {
				l.refused(tt.code, d)
				l.expect(l.backup("c2", d), "vda", backup.Incremental, backup.ByContent, tt.code)
				l.write("vda", "write -P 3 1M 64k")
				l.trusted(l.backup("c3", d), "c2")
			}
			l.restoreAll()
		})
	}
}
