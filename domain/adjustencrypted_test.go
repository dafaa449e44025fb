// SPDX-License-Identifier: Apache-2.0

package domain_test

import (
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/domain"
)

// A disk that was an encrypted image, and is what was in it, is not opened as one. One that is as it was is, wherever it lies.
func TestAdjustEncrypted(t *testing.T) {
	t.Parallel()
	const how = "<encryption format='luks'><secret type='passphrase' uuid='11111111-2222-3333-4444-555555555555'/></encryption>"
	disks := map[string]string{
		"in the source": "<source file='/a'>" + how + "</source>",
		"in the disk":   "<source file='/a'/>" + how,
	}
	for where, disk := range disks {
		in := []byte("<domain><name>web</name><devices><disk type='file'><driver type='raw'/>" + disk + "<target dev='vda'/></disk></devices></domain>")
		for name, c := range map[string]struct {
			to        domain.Image
			encrypted bool
			refused   string
		}{
			"a file, decrypted":   {to: domain.Image{Path: "/r/vda", Format: "qcow2", Decrypted: true}},
			"a server, decrypted": {to: domain.Image{Socket: "/r/sock", Decrypted: true}},
			"a file":              {to: domain.Image{Path: "/r/vda", Format: "raw"}, encrypted: true},
			"a server":            {to: domain.Image{Socket: "/r/sock"}, encrypted: true},
			"a file of qcow2":     {to: domain.Image{Path: "/r/vda", Format: "qcow2"}, refused: "has to be restored as raw"},
		} {
			a, err := domain.Adjust(in, domain.Moved{Disks: map[string]domain.Image{"vda": c.to}})
			if c.refused != "" {
				if err == nil || !strings.Contains(err.Error(), c.refused) {
					t.Errorf("%s, %s: %v", where, name, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s, %s: %v", where, name, err)
				continue
			}
			if strings.Contains(string(a.XML), how) != c.encrypted || c.encrypted == (len(a.Decrypted) == 1) {
				t.Errorf("%s, %s: %q are decrypted in\n%s", where, name, a.Decrypted, a.XML)
			}
		}
	}
}
