// SPDX-License-Identifier: Apache-2.0

package recovery

import (
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/imgbackup/imgbackup/chain"
	"github.com/imgbackup/imgbackup/internal/sys"
)

// Stage is how far a recovery has come. What a stage says holds from before it is recorded,
// unless it is Defined.
type Stage string

// The stages, in their order.
const (
	Begun    Stage = "begun"    // what is in the folder is ours, whole or not
	Ready    Stage = "ready"    // the definitions and the firmware's files are there
	Defined  Stage = "defined"  // a domain of our name and UUID in libvirt is ours, if it is there
	Complete Stage = "complete" // the files are the disks
	Done     Stage = "done"     // nothing is served any more
)

const (
	recordName    = ".imgbackup-recovery.json" // no name that a file of a checkpoint can have
	recordFormat  = "imgbackup-recovery"
	recordVersion = 1
	maxRecord     = 1 << 20 // bytes that are read
)

// Record is what a folder says of the recovery that it is of.
type Record struct {
	Format       string `json:"format"`
	Version      int    `json:"version"`
	RepositoryID string `json:"repository_id"`
	Domain       string `json:"domain"`
	Checkpoint   string `json:"checkpoint"`
	UUID         string `json:"uuid"` // the checkpoint's
	Name         string `json:"name"` // of the domain that is recovered
	NewIdentity  bool   `json:"new_identity,omitempty"`
	NoDefine     bool   `json:"no_define,omitempty"` // libvirt was left alone: what it has is not of this recovery
	// Connect is where the libvirt is that has it, or is to have it; empty: it was left alone, or nobody wrote it down.
	Connect    string `json:"connect,omitempty"`
	DomainUUID string `json:"domain_uuid,omitempty"` // from Ready on; empty: there is no definition
	Stage      Stage  `json:"stage"`
	Resetting  bool   `json:"resetting,omitempty"` // the domain ran, is switched off, and is to be started again
}

// ReadRecord reads that of a folder. The error is fs.ErrNotExist if it has none.
func ReadRecord(dir string) (*Record, error) {
	var r Record
	path := filepath.Join(dir, recordName)
	if err := (Kind{recordFormat, recordVersion, maxRecord, "a recovery"}).Read(path, &r); err != nil {
		return nil, err
	}
	if err := chain.CheckDomain(r.Name); err != nil { // files are named by it
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if !slices.Contains([]Stage{Begun, Ready, Defined, Complete, Done}, r.Stage) {
		return nil, fmt.Errorf("%s: there is no stage %.20q", path, r.Stage)
	}
	return &r, nil
}

// Kind is what a record of ours is, that a folder has beside what was restored into it.
type Kind struct {
	Format  string
	Version int
	Most    int64  // bytes that are read
	Of      string // for people
}

// Read reads one of that kind, a JSON document. The error is fs.ErrNotExist if it is not there.
func (k Kind) Read(path string, record any) error {
	text, err := sys.ReadBounded(path, k.Most)
	if err != nil {
		return err
	}
	var is struct {
		Format  string `json:"format"`
		Version int    `json:"version"`
	}
	if err := json.Unmarshal(text, &is); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	switch {
	case is.Format != k.Format:
		return fmt.Errorf("%s is no record of %s", path, k.Of)
	case is.Version != k.Version:
		return fmt.Errorf("%s was written by another version of imgbackup", path)
	}
	if err := json.Unmarshal(text, record); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// reach records a stage, durably.
func (r *Recovery) reach(stage Stage) error {
	next := r.record
	next.Stage = stage
	if err := r.write(next); err != nil {
		return err
	}
	r.step(string(stage))
	return nil
}

// write puts a record in the place of the one before, durably.
func (r *Recovery) write(next Record) error {
	err := sys.WriteWhole(filepath.Join(r.req.Dir, recordName), recordName+"-", 0o644, func(w io.Writer) error {
		return json.NewEncoder(w).Encode(next)
	})
	if err != nil {
		return fmt.Errorf("write down how far the recovery is: %w", err)
	}
	r.record = next
	return nil
}
