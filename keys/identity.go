// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/armor"
	"filippo.io/age/plugin"
	"golang.org/x/crypto/ssh"
)

// Ways say how a person is asked, if at all.
type Ways struct {
	// Passphrase asks for one, for what is named; nil: nobody can be asked.
	Passphrase func(what string) ([]byte, error)
	Plugin     *plugin.ClientUI
}

// ask asks for a passphrase. The error is an [Error] where nobody can be asked.
func (w Ways) ask(what string) ([]byte, error) {
	if w.Passphrase == nil {
		return nil, &Error{What: what + " is encrypted with a passphrase, and nobody can be asked for it here: give --passphrase-file"}
	}
	return w.Passphrase(what)
}

// Identities are what a person or a host opens things with.
type Identities struct {
	From string // where they came from, for messages
	Pin  *Pin   // what the file says beside the identity; nil: nothing

	all    []age.Identity
	native []string // the recipients of those that are age's own
	phrase bool     // a passphrase, that opens a file under keys/identities
}

// MaxIdentityFile bounds an identity file, bytes.
const MaxIdentityFile = 1 << 20

// The work that scrypt may take, as the logarithm of its factor: 18 is what age makes, 256
// MiB of memory. A person's own file may demand more than the repository's.
const (
	maxWorkOurs   = 18
	maxWorkPerson = 20
)

// Passphrase is the identity that a passphrase is.
func Passphrase(phrase []byte, from string) (*Identities, error) {
	id, err := scryptIdentity(phrase, maxWorkOurs)
	if err != nil {
		return nil, err
	}
	return &Identities{From: from, all: []age.Identity{id}, phrase: true}, nil
}

func scryptIdentity(phrase []byte, work int) (*age.ScryptIdentity, error) {
	id, err := age.NewScryptIdentity(string(phrase))
	if err != nil {
		return nil, err
	}
	id.SetMaxWorkFactor(work)
	return id, nil
}

// ParseIdentities reads an identity file as age takes one: identities of age and of
// plugins, a line each, or an SSH key; all of it may be encrypted with a passphrase. from is
// what it is called in messages, which never have a word of it.
func ParseIdentities(data []byte, from string, ways Ways) (*Identities, error) {
	if len(data) > MaxIdentityFile {
		return nil, fmt.Errorf("%s is no identity file: it has more than %d bytes", from, MaxIdentityFile)
	}
	plain, err := openFile(data, from, ways)
	if err != nil {
		return nil, err
	}
	ids := &Identities{From: from}
	if bytes.HasPrefix(bytes.TrimSpace(plain), []byte("-----BEGIN ")) {
		id, err := parseSSHIdentity(plain, from, ways)
		if err != nil {
			return nil, err
		}
		ids.all = []age.Identity{id}
		return ids, nil
	}
	if len(plain) > 0 && &plain[0] != &data[0] { // it was decrypted, and all that is kept of it is copied
		defer wipe(plain)
	}
	pin, err := ParsePin(plain)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	ids.Pin = pin
	return ids, ids.readLines(plain, ways)
}

// openFile decrypts an identity file that has a passphrase.
func openFile(data []byte, from string, ways Ways) ([]byte, error) {
	var src io.Reader = bytes.NewReader(data)
	switch {
	case bytes.HasPrefix(data, []byte("age-encryption.org/")):
	case bytes.HasPrefix(bytes.TrimSpace(data), []byte(armor.Header)):
		src = armor.NewReader(bytes.NewReader(bytes.TrimSpace(data)))
	default:
		return data, nil
	}
	phrase, err := ways.ask(from)
	if err != nil {
		return nil, err
	}
	defer wipe(phrase)
	id, err := scryptIdentity(phrase, maxWorkPerson)
	if err != nil {
		return nil, &Error{What: fmt.Sprintf("%s: %v", from, err)}
	}
	r, err := age.Decrypt(src, id)
	if err != nil {
		if isWrongKey(err) {
			return nil, &Error{What: fmt.Sprintf("the passphrase does not open %s", from)}
		}
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	plain, err := io.ReadAll(io.LimitReader(r, MaxIdentityFile+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	return plain, nil
}

// isWrongKey reports whether an error of age says that the identities are not those.
func isWrongKey(err error) bool {
	var none *age.NoIdentityMatchError
	return errors.As(err, &none) || errors.Is(err, age.ErrIncorrectIdentity)
}

func parseSSHIdentity(pem []byte, from string, ways Ways) (age.Identity, error) {
	id, err := agessh.ParseIdentity(pem)
	var missing *ssh.PassphraseMissingError
	switch {
	case err == nil:
		return id, nil
	case errors.As(err, &missing) && missing.PublicKey != nil:
		return agessh.NewEncryptedSSHIdentity(missing.PublicKey, pem, func() ([]byte, error) { return ways.ask(from) })
	}
	return nil, fmt.Errorf("%s is no identity file: %w", from, err)
}

// readLines reads identities, a line each.
func (ids *Identities) readLines(plain []byte, ways Ways) error {
	lines := bufio.NewScanner(bytes.NewReader(plain))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		id, recipient, err := parseIdentity(line, ways)
		if err != nil {
			return fmt.Errorf("%s, line %d: %w", ids.From, n, err)
		}
		ids.all = append(ids.all, id)
		if recipient != "" {
			ids.native = append(ids.native, recipient)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%s is no identity file: %w", ids.From, err)
	}
	if len(ids.all) == 0 {
		return &Error{What: ids.From + " has no identity: a line that begins with AGE-SECRET-KEY-"}
	}
	return nil
}

// parseIdentity reads a line; recipient is its public half, if that is age's own. No error
// has a word of it.
func parseIdentity(line string, ways Ways) (id age.Identity, recipient string, err error) {
	switch {
	case strings.HasPrefix(line, "AGE-PLUGIN-"):
		if id, err = plugin.NewIdentity(line, ways.Plugin); err != nil {
			return nil, "", errors.New("this is no identity of a plugin")
		}
		return pluginIdentity{id}, "", nil
	case strings.HasPrefix(line, "AGE-SECRET-KEY-PQ-1"):
		h, err := age.ParseHybridIdentity(line)
		if err != nil {
			return nil, "", errors.New("this is no identity: a letter is missing or another one")
		}
		return h, h.Recipient().String(), nil
	case strings.HasPrefix(line, "AGE-SECRET-KEY-1"):
		x, err := age.ParseX25519Identity(line)
		if err != nil {
			return nil, "", errors.New("this is no identity: a letter is missing or another one")
		}
		return x, x.Recipient().String(), nil
	case strings.HasPrefix(line, "age1"):
		return nil, "", errors.New("this is a recipient, the public half of a key; the identity is needed")
	}
	return nil, "", errors.New("this is no identity of age")
}

// pluginIdentity is one of a plugin, whose failure, as that it is not installed, is no damage of
// what it was to open.
type pluginIdentity struct{ age.Identity }

// Unwrap implements [age.Identity].
func (p pluginIdentity) Unwrap(stanzas []*age.Stanza) ([]byte, error) {
	key, err := p.Identity.Unwrap(stanzas)
	if err != nil && !errors.Is(err, age.ErrIncorrectIdentity) {
		return nil, &Error{What: err.Error()}
	}
	return key, err
}

// wipe overwrites what was secret.
func wipe(b []byte) { clear(b) }

// With is both.
func (ids *Identities) With(more *Identities) *Identities {
	return &Identities{
		From: ids.From + " or " + more.From, all: slices.Concat(ids.all, more.all), native: slices.Concat(ids.native, more.native),
	}
}
