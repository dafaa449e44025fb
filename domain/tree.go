// SPDX-License-Identifier: Apache-2.0

package domain

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Bounds of the XML that is read.
const (
	// MaxXML is the largest text, bytes. (libvirt's own tools stop at 10 MiB.)
	MaxXML = 8 << 20
	// maxDepth is how deep elements may be nested; libxml2's bound is 256.
	maxDepth = 128
	// maxParts bounds elements and attributes together.
	maxParts = 1 << 17
)

// Read reads a text of XML of at most MaxXML bytes. name is for the error.
func Read(r io.Reader, name string) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxXML+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(data) > MaxXML {
		return nil, fmt.Errorf("%s: the XML is longer than %d MiB", name, MaxXML>>20)
	}
	return data, nil
}

// node is an element. Names are as written, a prefix included.
type node struct {
	name  string
	attrs []attr
	kids  []*node
	text  string   // all character data directly within it
	mixed []string // its parts before each child and after the last, where there is more than blanks
	line  int
}

type attr struct{ name, value string }

func rawName(n xml.Name) string {
	if n.Space != "" {
		return n.Space + ":" + n.Local
	}
	return n.Local
}

// parseTree reads one XML document.
func parseTree(data []byte) (*node, error) {
	if len(data) > MaxXML {
		return nil, fmt.Errorf("the XML is longer than %d MiB", MaxXML>>20)
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	p := &treeParser{d: xml.NewDecoder(bytes.NewReader(data))}
	for {
		begin := p.d.InputOffset()
		tok, err := p.d.RawToken()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("not well-formed XML: %w", err)
		}
		if err := p.token(tok, begin); err != nil {
			return nil, err
		}
	}
	switch {
	case len(p.open) > 0:
		return nil, fmt.Errorf("not well-formed XML: the text ends within <%s>", p.open[len(p.open)-1].name)
	case p.root == nil:
		return nil, errors.New("not well-formed XML: there is no element")
	}
	return p.root, nil
}

type treeParser struct {
	d     *xml.Decoder
	root  *node
	open  []*node
	texts [][][]byte // of the open elements: parts before, between and after their children
	parts int
}

func (p *treeParser) errorf(format string, args ...any) error {
	line, _ := p.d.InputPos()
	return fmt.Errorf("line %d: %s", line, fmt.Sprintf(format, args...))
}

func (p *treeParser) token(tok xml.Token, begin int64) error {
	switch t := tok.(type) {
	case xml.StartElement:
		return p.begin(t)
	case xml.EndElement:
		if len(p.open) == 0 || p.open[len(p.open)-1].name != rawName(t.Name) {
			return p.errorf("not well-formed XML: unexpected </%s>", rawName(t.Name))
		}
		last := len(p.open) - 1
		n := p.open[last]
		n.text = string(bytes.Join(p.texts[last], nil))
		if len(n.kids) > 0 && n.hasText() {
			for _, part := range p.texts[last] {
				n.mixed = append(n.mixed, string(part))
			}
		}
		p.open, p.texts = p.open[:last], p.texts[:last]
	case xml.CharData:
		if len(p.open) > 0 {
			parts := p.texts[len(p.open)-1]
			parts[len(parts)-1] = append(parts[len(parts)-1], t...)
		} else if len(bytes.TrimSpace(t)) > 0 {
			return p.errorf("not well-formed XML: text outside of any element")
		}
	case xml.Directive:
		return p.errorf("a document type declaration is not accepted: no entities can be defined")
	case xml.ProcInst:
		if t.Target == "xml" && begin != 0 {
			return p.errorf("not well-formed XML: the XML declaration is not at the beginning")
		}
	}
	return nil
}

func (p *treeParser) begin(t xml.StartElement) error {
	line, _ := p.d.InputPos()
	n := &node{name: rawName(t.Name), line: line}
	p.parts += 1 + len(t.Attr)
	switch {
	case p.parts > maxParts:
		return p.errorf("the XML has more than %d elements and attributes", maxParts)
	case len(p.open) >= maxDepth:
		return p.errorf("elements are nested more than %d deep", maxDepth)
	case len(p.open) == 0 && p.root != nil:
		return p.errorf("not well-formed XML: a second element <%s> at the end", n.name)
	}
	seen := make(map[string]struct{}, len(t.Attr))
	for _, a := range t.Attr {
		name := rawName(a.Name)
		if _, twice := seen[name]; twice {
			return p.errorf("not well-formed XML: attribute %s occurs twice", name)
		}
		seen[name] = struct{}{}
		n.attrs = append(n.attrs, attr{name, a.Value})
	}
	if len(p.open) == 0 {
		p.root = n
	} else {
		parent := p.open[len(p.open)-1]
		parent.kids = append(parent.kids, n)
		p.texts[len(p.open)-1] = append(p.texts[len(p.open)-1], nil)
	}
	p.open = append(p.open, n)
	p.texts = append(p.texts, [][]byte{nil})
	return nil
}

func (n *node) errorf(format string, args ...any) error {
	return fmt.Errorf("line %d: <%s>: %s", n.line, n.name, fmt.Sprintf(format, args...))
}

// attr returns an attribute's value.
func (n *node) attr(name string) (string, bool) {
	for _, a := range n.attrs {
		if a.name == name {
			return a.value, true
		}
	}
	return "", false
}

func (n *node) has(name string) bool {
	_, ok := n.attr(name)
	return ok
}

func (n *node) value(name string) string {
	v, _ := n.attr(name)
	return v
}

// kid returns the first child of that name.
func (n *node) kid(name string) *node {
	for _, k := range n.kids {
		if k.name == name {
			return k
		}
	}
	return nil
}

func (n *node) hasText() bool { return strings.TrimSpace(n.text) != "" }
