// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// hostSalt makes the host's id useless for anything else, as machine-id(5) asks.
const hostSalt = "imgbackup host id, version 1\n"

// givenPrefix begins the ids that a person gave, so that none is ever taken for
// one that was derived from a machine id.
const givenPrefix = "given-"

// maxHostID bounds what a person gives as a host's id, bytes.
const maxHostID = 1024

// Host is a machine.
type Host struct {
	Name string `json:"name"`
	// ID is derived from the machine id, or from what a person gave instead
	// ([GivenHostID]); empty where there is neither.
	ID string `json:"id,omitempty"`
}

// Is reports whether two hosts are certainly the same machine. Machines that were
// cloned may share a machine id, hence the name counts as well; an id that a
// person gave is meant to outlast names.
func (h Host) Is(other Host) bool {
	return h.ID != "" && h.ID == other.ID && (h.Name == other.Name || strings.HasPrefix(h.ID, givenPrefix))
}

// Same reports whether h and other count as one host: by their ids, or by their
// names where either has no id.
func (h Host) Same(other Host) bool {
	if h.ID != "" && other.ID != "" {
		return h.ID == other.ID
	}
	return h.Name == other.Name
}

// folder is the part of a key in which the host's leases lie.
func (h Host) folder() string {
	if h.ID != "" && h.ID == EncodeDomain(h.ID) {
		return h.ID
	}
	return "name-" + hostDigest(h.ID+"\n"+h.Name)
}

// GivenHostID returns the id of a host that a person names by any text, of 1 to
// 1024 bytes, that only this host has.
func GivenHostID(text string) (string, error) {
	text = strings.TrimSpace(text)
	switch {
	case text == "":
		return "", errors.New("a host's id must not be empty")
	case len(text) > maxHostID:
		return "", fmt.Errorf("a host's id must not be longer than %d bytes, this one has %d", maxHostID, len(text))
	}
	return givenPrefix + hostDigest(text), nil
}

// hostDigest is 32 hexadecimal digits.
func hostDigest(id string) string {
	sum := sha256.Sum256([]byte(hostSalt + id))
	return hex.EncodeToString(sum[:16])
}

// currentHost finds out which machine this is. given is its id where a person
// gave one; it is empty otherwise.
func currentHost(root fs.FS, given string) (Host, error) {
	host := Host{Name: "unknown", ID: given}
	name, err := readWord(root, "proc/sys/kernel/hostname")
	if err != nil {
		return host, err
	}
	if name != "" {
		host.Name = readable(name, maxShort)
	}
	if given == "" {
		host.ID, err = machineID(root)
	}
	return host, err
}

// machineID returns the id that the machine id gives, or "" where there is none.
func machineID(root fs.FS) (string, error) {
	for _, file := range []string{"etc/machine-id", "var/lib/dbus/machine-id"} {
		id, err := readWord(root, file)
		switch {
		case err != nil:
			return "", fmt.Errorf("%w (--host-id gives this host an id instead)", err)
		case id == "" || id == "uninitialized": // see machine-id(5)
			continue
		case len(id) != 32 || strings.Trim(id, "0123456789abcdefABCDEF") != "":
			return "", fmt.Errorf("/%s holds no machine id, which has 32 hexadecimal digits"+
				" (--host-id gives this host an id instead)", file)
		}
		return hostDigest(id), nil
	}
	return "", nil
}

// bootID returns the id of the present boot, or "" where the kernel tells none.
func bootID(root fs.FS) (string, error) {
	id, err := readWord(root, "proc/sys/kernel/random/boot_id")
	return readable(id, maxShort), err
}

// readWord returns the content of a file of one line, "" if there is none. What
// can't be read is not absent: who left a lease or an intent would be nobody.
func readWord(root fs.FS, name string) (string, error) {
	data, err := fs.ReadFile(root, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("find out which host this is: read /%s: %w", name, withoutPath(err))
	}
	return string(bytes.TrimSpace(data)), nil
}

// withoutPath leaves of an error what its path does not tell.
func withoutPath(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// thisRoot is where the present machine tells about itself.
func thisRoot() fs.FS { return os.DirFS("/") }
