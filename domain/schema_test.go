// SPDX-License-Identifier: Apache-2.0

package domain_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/imgbackup/imgbackup/domain"
)

// validates asks xmllint, for each text, whether libvirt's schema takes it.
func validates(t *testing.T, schema string, texts []string) []bool {
	t.Helper()
	dir := t.TempDir()
	args := []string{"--noout", "--nonet", "--relaxng", "/usr/share/libvirt/schemas/" + schema}
	for i, text := range texts {
		name := filepath.Join(dir, fmt.Sprintf("%04d.xml", i))
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, name)
	}
	var stderr bytes.Buffer
	cmd := exec.Command("xmllint", args...)
	cmd.Stderr = &stderr
	_ = cmd.Run() // its status is of all together
	ok := make([]bool, len(texts))
	for i := range texts {
		name := args[4+i]
		ok[i] = strings.Contains(stderr.String(), name+" validates")
		if !ok[i] && !strings.Contains(stderr.String(), name+" fails to validate") {
			t.Fatalf("xmllint says nothing of %s\n%.2000s", texts[i], stderr.String())
		}
	}
	return ok
}

// libvirtVersion returns the version of the libvirt whose schemas are there, as
// 1000 × major + minor: libvirt's library has it in its file's name.
func libvirtVersion(t *testing.T) int {
	t.Helper()
	names, err := filepath.Glob("/usr/lib/*/libvirt.so.0.*.*")
	if err != nil || len(names) != 1 {
		t.Fatalf("which libvirt is it? %v, %v", names, err)
	}
	version, err := strconv.Atoi(strings.Split(filepath.Base(names[0]), ".")[3])
	if err != nil {
		t.Fatal(err)
	}
	return version
}

// Our parsers and libvirt's schemas take and refuse the same, and what we write
// is valid. The exceptions are named.
func TestSchemas(t *testing.T) {
	t.Parallel()
	libvirt := libvirtVersion(t)
	// What the schemas of libvirt 9.0 (Debian 12) do not know yet and those of 11.3
	// (Debian 13) do; between them it is not asked.
	newer := map[string]bool{
		"type-may-be-left-out/accepted": true, // since 9.1
		"server-fd/accepted":            true,
		"server-fd/completed":           true,
	}
	// What every schema leaves to the code.
	exceptions := map[string]string{
		"server-tcp-port/refused":       "the code takes 16 bits",
		"incremental-of-a-disk/refused": "no checkpoint has an empty name",
	}
	for file, kind := range map[string]struct {
		schema string
		parse  func(string) error
	}{
		"backup.txtar": {"domainbackup.rng", func(s string) error {
			_, err := domain.ParseBackup([]byte(s))
			return err
		}},
		"checkpoint.txtar": {"domaincheckpoint.rng", func(s string) error {
			_, err := domain.ParseCheckpoint([]byte(s))
			return err
		}},
	} {
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			rules, _, _ := readRules(t, file)
			var texts []string
			for _, r := range rules {
				texts = append(texts, r.accepted, r.completed, r.refused)
			}
			valid := validates(t, kind.schema, texts)
			for i, r := range rules {
				for j, part := range []string{"accepted", "completed", "refused"} {
					text, ours := texts[3*i+j], kind.parse(texts[3*i+j])
					name := r.name + "/" + part
					if newer[name] && libvirt > 9_000 && libvirt < 11_003 {
						continue
					}
					_, excepted := exceptions[name]
					excepted = excepted || newer[name] && libvirt <= 9_000
					if agree := (ours == nil) == valid[3*i+j]; agree == excepted {
						t.Errorf("%s/%s: we say %v, the schema says %v (exception: %v)\n%s", r.name, part, ours, valid[3*i+j], excepted, text)
					}
				}
			}
		})
	}
}
