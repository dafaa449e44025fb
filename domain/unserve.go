// SPDX-License-Identifier: Apache-2.0

package domain

import (
	"errors"
	"fmt"
)

// Unserve points the disks of a definition that are served at a socket to what another definition of the
// same domain has in their places. All else stays as it is, as somebody may have changed it.
func Unserve(data, files []byte, socket string) ([]byte, error) {
	served, err := Parse(data)
	if err != nil {
		return nil, err
	}
	if _, err := Parse(files); err != nil {
		return nil, err
	}
	is, err := elements(data)
	if err != nil {
		return nil, err
	}
	to, err := elements(files)
	if err != nil {
		return nil, err
	}
	e := &editor{data: data}
	for _, d := range served.Disks {
		if d.Socket != socket {
			continue
		}
		was, own := is.disk(d.Target), to.disk(d.Target)
		if was == nil || own == nil {
			return nil, fmt.Errorf("domain XML: disk %s is served, and nobody says where its file is", d.Target)
		}
		e.tag(was, "type", attrOf(own, "type"))
		for _, name := range []string{"source", "driver"} {
			e.like(was, name, own.kid(name), files)
		}
	}
	out := e.apply()
	now, err := Parse(out)
	if err != nil {
		return nil, err
	}
	for _, d := range now.Disks {
		if d.Socket == socket {
			return nil, errors.New("domain XML: a disk that is served cannot be pointed to its file")
		}
	}
	return out, nil
}

// disk is that of a domain; nil: it has none.
func (e *element) disk(target string) *element {
	devices := e.kid("devices")
	if devices == nil {
		return nil
	}
	for _, k := range devices.kids {
		if t := k.kid("target"); k.name == "disk" && t != nil && attrOf(t, "dev") == target {
			return k
		}
	}
	return nil
}

// like makes a part of an element what another text has in its place; nil: nothing.
func (e *editor) like(n *element, name string, other *element, in []byte) {
	part := n.kid(name)
	switch {
	case other == nil && part != nil:
		e.remove(part)
	case other == nil:
	case part == nil:
		e.insert(n, string(in[other.start:other.end]))
	default:
		e.edits = append(e.edits, edit{part.start, part.end, string(in[other.start:other.end])})
	}
}
