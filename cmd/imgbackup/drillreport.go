// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/drill"
	"github.com/imgbackup/imgbackup/drill/record"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/report"
)

// drillReport is the folder that --report names.
type drillReport struct {
	dir string
}

// newDrillReport makes the folder, or takes an empty one.
func (a *app) newDrillReport(dir string) (*drillReport, error) {
	if err := a.checkOutside("--report", dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("--report: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("--report: %w", err)
	}
	if len(entries) > 0 {
		return nil, usage.Errorf("--report %s: it is not empty, and evidence is not mixed: give a new folder", dir)
	}
	return &drillReport{dir: dir}, nil
}

// write writes a file so that it appears whole.
func (r *drillReport) write(name string, data []byte) error {
	path := filepath.Join(r.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return sys.WriteWhole(path, ".imgbackup-drill.", 0o600, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// record writes a record and its signature as the repository has them.
func (r *drillReport) record(domain, id string, data, sig []byte) error {
	name := filepath.FromSlash(strings.TrimSuffix(chain.DrillKey(domain, id), ".json"))
	if len(sig) > 0 {
		if err := r.write(name+".sig", sig); err != nil {
			return err
		}
	}
	return r.write(name+".json", data)
}

// maxKeptFile bounds a file that a step has left, bytes.
const maxKeptFile = 64 << 20

// kept copies what a step has left.
func (r *drillReport) kept(t *drill.Target, step, dir string) ([]record.Kept, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var all []record.Kept
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		name := fmt.Sprintf("%s.%s.%s-%s", chain.EncodeDomain(t.Manifest.Domain), t.Manifest.Checkpoint, step, e.Name())
		if len(name) > 255 {
			name = name[len(name)-255:]
		}
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(io.LimitReader(f, maxKeptFile))
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
		if err := r.write(name, data); err != nil {
			return nil, fmt.Errorf("--report: %w", err)
		}
		sum := sha256.Sum256(data)
		kind := map[string]string{".log": "console", ".png": "screen"}[filepath.Ext(name)]
		if kind == "" {
			kind = "output"
		}
		all = append(all, record.Kept{Name: name, Kind: kind, Size: int64(len(data)), SHA256: hex.EncodeToString(sum[:])})
	}
	return all, nil
}

// end writes the report of the run.
func (r *drillReport) end(run *record.Run) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(run); err != nil {
		return err
	}
	junit, err := record.JUnit(run)
	if err != nil {
		return err
	}
	var page bytes.Buffer
	kept := func(name string) ([]byte, error) { return os.ReadFile(filepath.Join(r.dir, name)) }
	if err := report.DrillHTML(&page, run, time.Local, tool(), kept); err != nil {
		return err
	}
	return errors.Join(r.write("drill.json", b.Bytes()), r.write("drill.xml", junit), r.write("drill.html", page.Bytes()))
}
