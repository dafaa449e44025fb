// SPDX-License-Identifier: Apache-2.0

package domain

import (
	"net/netip"
	"strconv"
	"strings"
)

// validHost is the schema's dnsName or ipAddr.
func validHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil && !strings.Contains(s, "%") {
		return true
	}
	return s != "" && strings.IndexFunc(s, func(r rune) bool { return (!word(r) || r == '_') && r != '.' && r != '-' }) < 0
}

// newStore reads <target> or <scratch>.
func newStore(n *node, kind string) (*Store, error) {
	where := "file"
	if kind == TypeBlock {
		where = "dev"
	}
	if err := n.check(shape{attrs: []string{where}, kids: []string{"seclabel*", "encryption"}}); err != nil {
		return nil, err
	}
	path, err := n.required(where)
	if err != nil {
		return nil, err
	}
	if !validPath(path) {
		return nil, n.errorf("%s=%q: the path must be absolute", where, clip(path))
	}
	s := &Store{Path: path}
	for _, k := range n.kids {
		switch k.name {
		case "seclabel":
			l, err := newSecLabel(k)
			if err != nil {
				return nil, err
			}
			for _, other := range s.SecLabels {
				if other.Model == l.Model {
					return nil, k.errorf("a second seclabel of model %q", clip(l.Model))
				}
			}
			s.SecLabels = append(s.SecLabels, l)
		case "encryption":
			if s.Encryption, err = newEncryption(k); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

// newSecLabel reads one of the schema's three groups: relabel='no',
// labelskip='yes', or a label.
func newSecLabel(n *node) (SecLabel, error) {
	l := SecLabel{Model: n.value("model"), NoRelabel: n.value("relabel") == "no", LabelSkip: n.has("labelskip")}
	s := shape{attrs: []string{"model", "relabel"}}
	switch {
	case l.LabelSkip:
		s.attrs = []string{"model", "labelskip"}
	case !l.NoRelabel:
		s.kids = []string{"label*"}
	}
	if err := n.check(s); err != nil {
		return l, err
	}
	if err := n.oneOf("relabel", "yes", "no"); err != nil {
		return l, err
	}
	if err := n.oneOf("labelskip", "yes"); err != nil {
		return l, err
	}
	for _, k := range n.kids {
		if err := k.check(shape{text: true}); err != nil {
			return l, err
		}
		if l.Label == "" {
			l.Label = k.text
		}
	}
	if !l.NoRelabel && !l.LabelSkip && l.Label == "" {
		return l, n.errorf("it has neither relabel='no' nor a label")
	}
	return l, nil
}

func newEncryption(n *node) (*Encryption, error) {
	if err := n.check(shape{attrs: []string{"format", "engine"}, kids: []string{"secret", "cipher", "ivgen"}}); err != nil {
		return nil, err
	}
	if _, err := n.required("format"); err != nil {
		return nil, err
	}
	if err := n.oneOf("format", "luks"); err != nil {
		return nil, err
	}
	if err := n.oneOf("engine", "qemu"); err != nil {
		return nil, err
	}
	e := &Encryption{Engine: n.value("engine")}
	secret, cipher, ivgen := n.kid("secret"), n.kid("cipher"), n.kid("ivgen")
	switch {
	case secret == nil:
		return nil, n.errorf("it has no <secret>")
	case (cipher == nil) != (ivgen == nil):
		return nil, n.errorf("<cipher> and <ivgen> go together")
	}
	if err := e.readSecret(secret); err != nil {
		return nil, err
	}
	if cipher == nil {
		return e, nil
	}
	var err error
	e.Cipher, err = newCipher(cipher, ivgen)
	return e, err
}

func (e *Encryption) readSecret(n *node) error {
	if err := n.check(shape{attrs: []string{"type", "uuid", "usage"}}); err != nil {
		return err
	}
	if _, err := n.required("type"); err != nil {
		return err
	}
	if err := n.oneOf("type", "passphrase"); err != nil {
		return err
	}
	if n.has("uuid") == n.has("usage") {
		return n.errorf("it needs a uuid or a usage, and not both")
	}
	e.SecretUsage = n.value("usage")
	if n.has("usage") {
		if e.SecretUsage == "" {
			return n.errorf("usage is empty")
		}
		return nil
	}
	id, ok := canonicalUUID(n.value("uuid"))
	if !ok {
		return n.errorf("%q is no UUID", clip(n.value("uuid")))
	}
	e.SecretUUID = id
	return nil
}

func newCipher(n, ivgen *node) (*Cipher, error) {
	if err := n.check(shape{attrs: []string{"name", "size", "mode", "hash"}}); err != nil {
		return nil, err
	}
	if err := ivgen.check(shape{attrs: []string{"name", "hash"}}); err != nil {
		return nil, err
	}
	c := &Cipher{Mode: n.value("mode"), Hash: n.value("hash"), IVGHash: ivgen.value("hash")}
	var err error
	if c.Name, err = n.required("name"); err != nil {
		return nil, err
	}
	if c.IVGenName, err = ivgen.required("name"); err != nil {
		return nil, err
	}
	size, ok := number(n.value("size"), 32)
	if !ok {
		return nil, n.errorf("size=%q is no number of bits", clip(n.value("size")))
	}
	if n.has("mode") != n.has("hash") {
		return nil, n.errorf("mode and hash go together")
	}
	c.Size = uint32(size)
	return c, nil
}

// write writes the store as an element of that name.
func (s *Store) write(w *writer, name, kind string) {
	var a attrList
	where := "file"
	if kind == TypeBlock {
		where = "dev"
	}
	a.some(where, s.Path)
	w.element(name, a, func() {
		for _, l := range s.SecLabels {
			l.write(w)
		}
		if s.Encryption != nil {
			s.Encryption.write(w)
		}
	})
}

func (l *SecLabel) write(w *writer) {
	var a attrList
	a.some("model", l.Model)
	switch {
	case l.LabelSkip:
		a.add("labelskip", "yes")
	case l.NoRelabel:
		a.add("relabel", "no")
	}
	w.element("seclabel", a, func() { w.text("label", l.Label) })
}

func (e *Encryption) write(w *writer) {
	var a, secret attrList
	a.add("format", "luks")
	a.some("engine", e.Engine)
	secret.add("type", "passphrase")
	secret.some("uuid", e.SecretUUID)
	secret.some("usage", e.SecretUsage)
	w.element("encryption", a, func() {
		w.line("<secret" + string(secret) + "/>")
		if c := e.Cipher; c != nil {
			var cipher, ivgen attrList
			cipher.add("name", c.Name)
			cipher.add("size", strconv.FormatUint(uint64(c.Size), 10))
			cipher.some("mode", c.Mode)
			cipher.some("hash", c.Hash)
			ivgen.add("name", c.IVGenName)
			ivgen.some("hash", c.IVGHash)
			w.line("<cipher" + string(cipher) + "/>")
			w.line("<ivgen" + string(ivgen) + "/>")
		}
	})
}
