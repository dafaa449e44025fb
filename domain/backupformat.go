// SPDX-License-Identifier: Apache-2.0

package domain

import "strconv"

// Format returns the XML as libvirt writes it, with a line end after the last
// element.
func (b *Backup) Format() []byte {
	w := &writer{}
	var a attrList
	a.add("mode", b.Mode)
	w.element("domainbackup", a, func() {
		w.text("incremental", b.Incremental)
		if b.Server != nil {
			w.line("<server" + string(b.Server.attrs()) + "/>")
		}
		if len(b.Disks) > 0 {
			w.element("disks", "", func() {
				for i := range b.Disks {
					b.Disks[i].write(w, storeName(b.Mode))
				}
			})
		}
	})
	return w.b
}

func (s *Server) attrs() attrList {
	var a attrList
	a.add("transport", s.Transport)
	a.some("tls", s.TLS)
	a.some("name", s.Name)
	if s.Port != 0 {
		a.add("port", strconv.Itoa(int(s.Port)))
	}
	a.some("socket", s.Socket)
	a.some("fdgroup", s.FDGroup)
	return a
}

func (bd *BackupDisk) write(w *writer, store string) {
	var a attrList
	a.add("name", bd.Name)
	if !bd.Backup {
		a.add("backup", "no")
		w.line("<disk" + string(a) + "/>")
		return
	}
	if bd.Type != "" || store == "target" { // the schema wants both or none for a scratch
		a.add("backup", "yes")
	}
	a.some("type", bd.Type)
	a.some("backupmode", bd.BackupMode)
	a.some("incremental", bd.Incremental)
	a.some("exportname", bd.ExportName)
	a.some("exportbitmap", bd.ExportBitmap)
	if bd.Index != 0 {
		a.add("index", strconv.FormatUint(uint64(bd.Index), 10))
	}
	w.element("disk", a, func() {
		if bd.Format != "" {
			var driver attrList
			driver.add("type", bd.Format)
			w.line("<driver" + string(driver) + "/>")
		}
		if bd.Store != nil {
			bd.Store.write(w, store, bd.Type)
		}
	})
}
