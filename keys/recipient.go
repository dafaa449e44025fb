// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"fmt"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/plugin"
	"filippo.io/age/tag"
)

// Recipient is whom something is encrypted to.
type Recipient struct {
	Text        string // as it is written, without the comment of an SSH key
	To          age.Recipient
	PostQuantum bool // its files are not read by a quantum computer either
}

// ParseRecipient reads a recipient as age does: age1…, age1pq1…, ssh-ed25519 and ssh-rsa
// keys, and those of plugins, which talk to a person by ui.
func ParseRecipient(s string, ui *plugin.ClientUI) (*Recipient, error) {
	s = strings.TrimSpace(s)
	switch {
	case len(s) > maxRecipient:
		return nil, fmt.Errorf("a recipient has at most %d bytes", maxRecipient)
	case strings.HasPrefix(s, "AGE-") || strings.Contains(s, "PRIVATE KEY"):
		// Not a word of it: it may be printed, and kept.
		return nil, fmt.Errorf("this is a private key, not a recipient: age-keygen -y prints its public half")
	case strings.HasPrefix(s, "ssh-"):
		return parseSSH(s)
	case strings.HasPrefix(s, "age1pq1"):
		r, err := age.ParseHybridRecipient(s)
		if err != nil {
			return nil, fmt.Errorf("not a recipient: %.40q…: %w", s, err)
		}
		return &Recipient{Text: s, To: r, PostQuantum: true}, nil
	case strings.HasPrefix(s, "age1tag1"), strings.HasPrefix(s, "age1tagpq1"):
		r, err := tag.ParseRecipient(s)
		if err != nil {
			return nil, fmt.Errorf("not a recipient: %.40q…: %w", s, err)
		}
		return &Recipient{Text: s, To: r, PostQuantum: r.Hybrid()}, nil
	case strings.HasPrefix(s, "age1"):
		if !isNative(s) {
			return parsePlugin(s, ui)
		}
		r, err := age.ParseX25519Recipient(s)
		if err != nil {
			return nil, fmt.Errorf("not a recipient: %.80q: %w", s, err)
		}
		return &Recipient{Text: s, To: r}, nil
	}
	return nil, fmt.Errorf("not a recipient: %.80q (age1…, age1pq1…, ssh-ed25519 … and ssh-rsa … are)", s)
}

// isNative reports whether a recipient is no plugin's: the letters of its data have no 1.
func isNative(s string) bool { return strings.LastIndexByte(s, '1') == len("age1")-1 }

func parsePlugin(s string, ui *plugin.ClientUI) (*Recipient, error) {
	r, err := plugin.NewRecipient(s, ui)
	if err != nil {
		return nil, fmt.Errorf("not a recipient: %.80q: %w", s, err)
	}
	return &Recipient{Text: s, To: r}, nil
}

// parseSSH takes an SSH key without its comment, which is no part of it.
func parseSSH(s string) (*Recipient, error) {
	fields := strings.Fields(s)
	if len(fields) > 2 {
		fields = fields[:2]
	}
	text := strings.Join(fields, " ")
	r, err := agessh.ParseRecipient(text)
	if err != nil {
		return nil, fmt.Errorf("not a recipient: %.80q: %w", s, err)
	}
	return &Recipient{Text: text, To: r}, nil
}

// isPostQuantum reports whether a text can only be the recipient of a hybrid key.
func isPostQuantum(s string) bool {
	return strings.HasPrefix(s, "age1pq1") || strings.HasPrefix(s, "age1tagpq1")
}
