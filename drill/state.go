// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/imgbackup/imgbackup/archive"
	"github.com/imgbackup/imgbackup/internal/sys"
	"github.com/imgbackup/imgbackup/internal/usage"
)

// What a run has proven until it was cut off is kept in a file: so that the same run can
// go on, and proves no chunk twice. The file is a line that says what it is, a line of
// JSON, the lists of maps (32 bytes each), the chunks (16 bytes, and 4 that say how much
// of it is known to be there), and the SHA-256 of all that. It is no proof to anybody
// else, and goes when the run is complete.

const stateLine = "imgbackup drill state, version 1\n"

// stateHead is the line of JSON.
type stateHead struct {
	Repository string `json:"repository_id"`
	Run        string `json:"run"`
	Lists      int    `json:"lists"`
	Chunks     int    `json:"chunks"`
	// Saved is when; what is on record afterwards was proven before that, in part.
	Saved time.Time `json:"saved,omitzero"`
}

const (
	maxStateHead = 4096
	maxLists     = 1 << 20
	chunkRecord  = len(frame{}) + 4
)

// Save keeps what was proven in a file, in the place of what it held.
func (d *Drill) Save(path string) error {
	return sys.WriteWhole(path, ".imgbackup-drill-state.", 0o600, func(to io.Writer) error {
		h := sha256.New()
		w := bufio.NewWriterSize(io.MultiWriter(to, h), 1<<20)
		if err := errors.Join(d.writeState(w), w.Flush()); err != nil {
			return err
		}
		_, err := to.Write(h.Sum(nil))
		return err
	})
}

func (d *Drill) writeState(w *bufio.Writer) error {
	p := d.prover
	p.mu.Lock()
	defer p.mu.Unlock()
	lists := p.lists
	if len(p.bad) > 0 {
		lists = nil // what is damaged is met, and told, once more
	}
	head, err := json.Marshal(stateHead{d.repo.Config.ID, d.o.Run, len(lists), len(p.proven), now()})
	if err != nil {
		return err
	}
	for _, s := range [][]byte{[]byte(stateLine), head, []byte("\n")} {
		if _, err := w.Write(s); err != nil {
			return err
		}
	}
	for name := range lists {
		if _, err := w.Write(name[:]); err != nil {
			return err
		}
	}
	for f, n := range p.proven {
		if _, err := w.Write(binary.BigEndian.AppendUint32(f[:len(f):len(f)], uint32(n))); err != nil {
			return err
		}
	}
	return nil
}

// State is what a run that was cut off has proven.
type State struct {
	Run  string // its UUID
	head stateHead

	lists  map[archive.Digest]bool
	proven map[frame]int32
}

// LoadState reads what [Drill.Save] has kept; nil: there is no such file.
func LoadState(path string) (*State, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s, err := readState(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, usage.Errorf("%s is no state of a drill, or not whole: %w", path, err)
	}
	return s, nil
}

func readState(f io.Reader) (*State, error) {
	h := sha256.New()
	in := bufio.NewReaderSize(f, 1<<20)
	from := io.TeeReader(in, h)
	line := make([]byte, len(stateLine))
	if _, err := io.ReadFull(from, line); err != nil || string(line) != stateLine {
		return nil, errors.Join(err, errors.New("it does not say that it is one"))
	}
	var text []byte
	for b := make([]byte, 1); ; text = append(text, b[0]) {
		if _, err := io.ReadFull(from, b); err != nil || len(text) > maxStateHead {
			return nil, errors.Join(err, errors.New("its head is wrong"))
		}
		if b[0] == '\n' {
			break
		}
	}
	s := &State{lists: make(map[archive.Digest]bool), proven: make(map[frame]int32)}
	if err := json.Unmarshal(text, &s.head); err != nil {
		return nil, err
	}
	if n := s.head; n.Lists < 0 || n.Lists > maxLists || n.Chunks < 0 || n.Chunks > maxProven {
		return nil, fmt.Errorf("it has %d lists and %d chunks", n.Lists, n.Chunks)
	}
	s.Run = s.head.Run
	for range s.head.Lists {
		var name archive.Digest
		if _, err := io.ReadFull(from, name[:]); err != nil {
			return nil, err
		}
		s.lists[name] = true
	}
	var record [chunkRecord]byte
	for range s.head.Chunks {
		if _, err := io.ReadFull(from, record[:]); err != nil {
			return nil, err
		}
		n := binary.BigEndian.Uint32(record[len(frame{}):])
		if n > archive.GridSize {
			return nil, fmt.Errorf("a chunk of %d bytes", n)
		}
		s.proven[frame(record[:len(frame{})])] = int32(n)
	}
	sum, err := io.ReadAll(io.LimitReader(in, sha256.Size+1))
	if err != nil || !bytes.Equal(sum, h.Sum(nil)) {
		return nil, errors.Join(err, errors.New("its SHA-256 is not that of its content"))
	}
	return s, nil
}

// resume takes over what the same run has proven before.
func (d *Drill) resume(s *State) error {
	if s.head.Repository != d.repo.Config.ID {
		return usage.Errorf("the state is of a drill of repository %s, and this is %s", s.head.Repository, d.repo.Config.ID)
	}
	d.prover.lists, d.prover.proven = s.lists, s.proven
	return nil
}
