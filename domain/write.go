// SPDX-License-Identifier: Apache-2.0

package domain

import "strings"

// writer writes XML as libvirt does: two blanks per level, single quotes, an
// element without content closed at once.
type writer struct {
	b      []byte
	indent int
}

var (
	textEscapes = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "'", "&apos;", `"`, "&quot;", "\r", "&#13;")
	attrEscapes = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "'", "&apos;", `"`, "&quot;", "\r", "&#13;", "\n", "&#10;", "\t", "&#9;")
)

func escape(s string) string { return textEscapes.Replace(allowed(s)) }

// allowed leaves out what no XML can hold, as libvirt does, such as control
// characters.
func allowed(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 && r != '\t' && r != '\n' && r != '\r' || r == 0xfffe || r == 0xffff {
			return -1
		}
		return r // of bytes that are not UTF-8, U+FFFD
	}, s)
}

// quote is for attributes, where a reader takes other white space for blanks.
func quote(s string) string { return attrEscapes.Replace(allowed(s)) }

// attrList is attributes in their order.
type attrList string

func (a *attrList) add(name, value string) {
	*a += attrList(" " + name + "='" + quote(value) + "'")
}

// some leaves an empty one out.
func (a *attrList) some(name, value string) {
	if allowed(value) != "" {
		a.add(name, value)
	}
}

func (w *writer) line(s string) {
	w.b = append(w.b, strings.Repeat("  ", w.indent)...)
	w.b = append(w.b, s...)
	w.b = append(w.b, '\n')
}

// text writes an element that holds a text, if the text is not empty.
func (w *writer) text(name, value string) {
	if allowed(value) != "" {
		w.line("<" + name + ">" + escape(value) + "</" + name + ">")
	}
}

// element writes an element with what content writes into it.
func (w *writer) element(name string, a attrList, content func()) {
	begin := len(w.b)
	w.line("<" + name + string(a) + ">")
	inner := len(w.b)
	w.indent++
	content()
	w.indent--
	if len(w.b) == inner {
		w.b = w.b[:begin]
		w.line("<" + name + string(a) + "/>")
		return
	}
	w.line("</" + name + ">")
}

// tree writes a whole element as it was read, without comments. Elements that
// hold only elements are indented anew; where there is text, nothing is added.
func (w *writer) tree(n *node) {
	if len(n.kids) > 0 && n.mixed == nil {
		w.element(n.name, n.attrList(), func() {
			for _, k := range n.kids {
				w.tree(k)
			}
		})
		return
	}
	w.line(n.inline())
}

func (n *node) attrList() attrList {
	var a attrList
	for _, at := range n.attrs {
		a.add(at.name, at.value)
	}
	return a
}

// inline is an element with all that is in it, without any white space added.
func (n *node) inline() string {
	var b strings.Builder
	n.appendTo(&b)
	return b.String()
}

func (n *node) appendTo(b *strings.Builder) {
	b.WriteString("<" + n.name + string(n.attrList()))
	if len(n.kids) == 0 && n.text == "" {
		b.WriteString("/>")
		return
	}
	b.WriteByte('>')
	for i, k := range n.kids {
		if n.mixed != nil {
			b.WriteString(escape(n.mixed[i]))
		}
		k.appendTo(b)
	}
	switch {
	case n.mixed != nil:
		b.WriteString(escape(n.mixed[len(n.kids)]))
	case len(n.kids) == 0:
		b.WriteString(escape(n.text))
	}
	b.WriteString("</" + n.name + ">")
}
