// SPDX-License-Identifier: Apache-2.0

package domain

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Moved says where the files of a domain are now, and what it is now. What is not named
// stays as the definition has it.
type Moved struct {
	Disks  map[string]Image // by target
	NVRAM  string           // path; empty: not moved
	Loader string           // path; empty: not moved

	Name        string // empty: as it was
	NewIdentity bool   // another UUID, other MAC addresses, and what goes with them
}

// Adjusted is a definition that names the files where they are now.
type Adjusted struct {
	XML  []byte
	Name string
	UUID string            // empty: libvirt will make one
	MACs map[string]string // of the definition as it was → new

	// Decrypted are the disks, by target, that were encrypted images and are not any more.
	Decrypted []string
	// What it still names that two domains can't use at once, in words for a person:
	// disks that were not moved, and other things.
	OtherDisks, Shared []string
}

// Image is a file that is a disk, without a backing chain, or an export of an NBD server.
type Image struct {
	Path   string // absolute
	Format string // raw or qcow2
	// Socket is the path of the Unix socket of a server whose export is named as the disk's
	// target; Path and Format are empty then. A guest that cannot be served is stopped until it
	// can be, instead of being told of errors.
	Socket string
	// Decrypted: if the definition says that the disk is encrypted, this is what was in it. Else it is
	// encrypted as it was, and so can be nothing but raw.
	Decrypted bool
}

// Adjust rewrites a definition so that it names the files where they are now.
// Every byte that is not about them stays as it was, comments included. Of a
// moved disk, a stated backing chain and a mirror are removed.
func Adjust(data []byte, m Moved) (*Adjusted, error) {
	if _, err := Parse(data); err != nil {
		return nil, err
	}
	e := &editor{data: data, moved: m}
	var err error
	if m.NewIdentity {
		if e.made, err = newIdentity(); err != nil {
			return nil, err
		}
	}
	if err := e.scan(); err != nil {
		return nil, fmt.Errorf("domain XML: %w", err)
	}
	out, err := e.result()
	if err != nil {
		return nil, fmt.Errorf("adjust the domain XML: %w", err)
	}
	return out, nil
}

// result proves the adjusted definition, and says what it is.
func (e *editor) result() (*Adjusted, error) {
	a := &Adjusted{XML: e.apply()}
	d, err := e.moved.holds(a.XML)
	if err != nil {
		return nil, err
	}
	a.Name, a.UUID, a.Decrypted = d.Name, d.UUID, e.decrypted
	if e.made != nil {
		a.MACs = e.made.macs
		if err := e.made.holds(a.XML); err != nil {
			return nil, err
		}
	}
	a.OtherDisks, a.Shared, err = shares(a.XML, e.moved)
	return a, err
}

// holds proves that a definition names the files where they are now.
func (m Moved) holds(data []byte) (*Domain, error) {
	d, err := Parse(data)
	if err != nil {
		return nil, err
	}
	for target, im := range m.Disks {
		disk, ok := d.Disk(target)
		if !ok {
			return nil, fmt.Errorf("it has no disk %s", target)
		}
		if im.Decrypted && disk.Encrypted {
			return nil, fmt.Errorf("disk %s cannot be told that it is not encrypted any more", target)
		}
		if disk.Encrypted && im.Socket == "" && im.Format != "raw" {
			return nil, fmt.Errorf("disk %s is encrypted by QEMU (LUKS), and in the archive as it was: it has to be restored as raw", target)
		}
		if im.Socket != "" {
			if disk.Type != "network" || disk.Protocol != "nbd" || disk.Socket != im.Socket || disk.Format != "raw" || len(disk.Backing) > 0 {
				return nil, fmt.Errorf("disk %s cannot be pointed to the NBD server at %s", target, im.Socket)
			}
			continue
		}
		if disk.Type != TypeFile || disk.Path != im.Path || disk.Format != im.Format || len(disk.Backing) > 0 {
			return nil, fmt.Errorf("disk %s cannot be pointed to %s", target, im.Path)
		}
	}
	if m.NVRAM != "" && d.NVRAM != m.NVRAM || m.Loader != "" && d.Loader != m.Loader {
		return nil, errors.New("the firmware's files cannot be pointed to")
	}
	if m.Name != "" && d.Name != m.Name {
		return nil, errors.New("the domain cannot be given another name")
	}
	return d, nil
}

// element is an element with its place in the text.
type element struct {
	name       string
	attrs      []xml.Attr
	start, end int // of the whole element
	inner      int // where the start tag ends
	close      int // where the end tag begins; that of <a/> is end
	kids       []*element
}

func (e *element) kid(name string) *element {
	for _, k := range e.kids {
		if k.name == name {
			return k
		}
	}
	return nil
}

// path is what the names lead to; nil: nothing, as from nil.
func (e *element) path(names ...string) *element {
	for _, name := range names {
		if e == nil {
			return nil
		}
		e = e.kid(name)
	}
	return e
}

// edit replaces a range of the text.
type edit struct {
	start, end int
	text       string
}

type editor struct {
	data  []byte
	moved Moved
	made  *identity // nil: it stays what it was
	edits []edit

	decrypted []string // see Adjusted
}

// scan finds what has to be changed. The text is well-formed.
func (e *editor) scan() error {
	root, err := elements(e.data)
	if err != nil {
		return err
	}
	if devices := root.kid("devices"); devices != nil {
		for _, disk := range devices.kids {
			if disk.name == "disk" {
				e.disk(disk)
			}
		}
	}
	e.file(root.path("os", "nvram"), e.moved.NVRAM)
	e.file(root.path("os", "loader"), e.moved.Loader)
	if e.moved.Name != "" {
		e.text(root.kid("name"), e.moved.Name)
	}
	if e.made != nil {
		return e.identity(root)
	}
	return nil
}

// elements reads the tree of elements of a well-formed text.
func elements(data []byte) (*element, error) {
	d := xml.NewDecoder(bytes.NewReader(data))
	top := &element{}
	open := []*element{top}
	for {
		at := int(d.InputOffset())
		tok, err := d.RawToken()
		if errors.Is(err, io.EOF) {
			return top.kids[0], nil
		}
		if err != nil {
			return nil, err
		}
		switch t := tok.(type) {
		case xml.StartElement:
			n := &element{name: rawName(t.Name), attrs: t.Copy().Attr, start: at, inner: int(d.InputOffset())}
			parent := open[len(open)-1]
			parent.kids = append(parent.kids, n)
			open = append(open, n)
		case xml.EndElement:
			n := open[len(open)-1]
			n.close, n.end = at, int(d.InputOffset())
			open = open[:len(open)-1]
		}
	}
}

func (e *editor) disk(n *element) {
	target := n.kid("target")
	if target == nil {
		return
	}
	im, ok := e.moved.Disks[attrOf(target, "dev")]
	if !ok {
		return
	}
	if im.Decrypted {
		e.decrypt(n, attrOf(target, "dev"))
	}
	if im.Socket != "" {
		e.served(n, attrOf(target, "dev"), im)
		e.noChain(n)
		return
	}
	e.tag(n, "type", TypeFile)
	if driver := n.kid("driver"); driver != nil {
		e.tag(driver, "type", im.Format)
	} else {
		e.insert(n, "<driver name='qemu' type='"+im.Format+"'/>")
	}
	if source := n.kid("source"); source != nil {
		e.tag(source, "file", im.Path, "dev", "dir", "index", "protocol", "name", "pool", "volume", "mode")
	} else {
		e.insert(n, "<source file='"+quote(im.Path)+"'/>")
	}
	e.noChain(n)
}

// noChain takes out what a disk was made of.
func (e *editor) noChain(n *element) {
	for _, k := range n.kids {
		if k.name == "backingStore" || k.name == "mirror" {
			e.remove(k)
		}
	}
}

// decrypt takes out that a disk is encrypted.
func (e *editor) decrypt(n *element, target string) {
	was := false
	for _, in := range []*element{n, n.kid("source")} {
		if in == nil {
			continue
		}
		for _, k := range in.kids {
			if k.name == "encryption" {
				e.remove(k)
				was = true
			}
		}
	}
	if was {
		e.decrypted = append(e.decrypted, target)
	}
}

// served points a disk to an export of an NBD server.
func (e *editor) served(n *element, export string, im Image) {
	e.tag(n, "type", "network")
	if driver := n.kid("driver"); driver != nil {
		e.tags(driver, [][2]string{{"type", "raw"}, {"error_policy", "stop"}, {"rerror_policy", "stop"}}, "io")
	} else {
		e.insert(n, "<driver name='qemu' type='raw' error_policy='stop' rerror_policy='stop'/>")
	}
	text := "<source protocol='nbd' name='" + quote(export) + "'><host transport='unix' socket='" + quote(im.Socket) + "'/>"
	source := n.kid("source")
	if k := source.path("encryption"); k != nil && !im.Decrypted {
		text += string(e.data[k.start:k.end])
	}
	text += "</source>"
	if source != nil {
		e.edits = append(e.edits, edit{source.start, source.end, text})
	} else {
		e.insert(n, text)
	}
}

// file points an element whose text is a path, or whose <source> is, to another.
func (e *editor) file(n *element, path string) {
	switch {
	case n == nil || path == "":
	case n.kid("source") != nil:
		e.tag(n, "type", TypeFile)
		e.tag(n.kid("source"), "file", path, "dev", "index", "protocol", "name")
	default:
		e.text(n, path)
	}
}

// text replaces the text of an element that has one.
func (e *editor) text(n *element, text string) {
	if n != nil && n.inner < n.close {
		e.edits = append(e.edits, edit{n.inner, n.close, escape(text)})
	}
}

func attrOf(n *element, name string) string {
	for _, a := range n.attrs {
		if rawName(a.Name) == name {
			return a.Value
		}
	}
	return ""
}

// tag sets one attribute of an element, and takes others away.
func (e *editor) tag(n *element, name, value string, drop ...string) {
	e.tags(n, [][2]string{{name, value}}, drop...)
}

// tags sets attributes of an element, and takes others away.
func (e *editor) tags(n *element, set [][2]string, drop ...string) {
	var a attrList
	found := make(map[string]bool)
	for _, at := range n.attrs {
		key := rawName(at.Name)
		i := slices.IndexFunc(set, func(s [2]string) bool { return s[0] == key })
		switch {
		case i >= 0:
			a.add(key, set[i][1])
			found[key] = true
		case !slices.Contains(drop, key):
			a.add(key, at.Value)
		}
	}
	for _, s := range set {
		if !found[s[0]] {
			a.add(s[0], s[1])
		}
	}
	closing := ">"
	if n.end == n.inner {
		closing = "/>"
	}
	e.edits = append(e.edits, edit{n.start, n.inner, "<" + n.name + string(a) + closing})
}

// insert puts an element at the beginning of another, on a line of its own.
func (e *editor) insert(n *element, text string) {
	if len(n.kids) > 0 {
		text += string(e.data[n.inner:n.kids[0].start])
		if strings.TrimSpace(text[strings.LastIndexByte(text, '>')+1:]) != "" || strings.Contains(text, "<!--") {
			text = text[:strings.IndexByte(text, '>')+1]
		}
		e.edits = append(e.edits, edit{n.kids[0].start, n.kids[0].start, text})
	}
}

// remove takes an element out, with the blanks before it.
func (e *editor) remove(n *element) {
	start := n.start
	for start > 0 && strings.IndexByte(" \t\r\n", e.data[start-1]) >= 0 {
		start--
	}
	e.edits = append(e.edits, edit{start, n.end, ""})
}

func (e *editor) apply() []byte {
	slices.SortStableFunc(e.edits, func(a, b edit) int { return a.start - b.start })
	var out []byte
	at := 0
	for _, ed := range e.edits {
		if ed.start < at { // within what is gone
			if ed.start == ed.end {
				out = append(out, ed.text...)
			}
			continue
		}
		out = append(out, e.data[at:ed.start]...)
		out = append(out, ed.text...)
		at = ed.end
	}
	return append(out, e.data[at:]...)
}
