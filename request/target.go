// SPDX-License-Identifier: Apache-2.0

package request

import (
	"errors"
	"fmt"
	"slices"

	"github.com/imgbackup/imgbackup/backup/push"
	dom "github.com/imgbackup/imgbackup/domain"
	"github.com/imgbackup/imgbackup/internal/usage"
	"github.com/imgbackup/imgbackup/qcow2"
)

const targetForm = "TARGET=PATH[,driver=qcow2|raw][,backing=FILE,backingformat=qcow2|raw][,cluster_size=SIZE][,reuse=yes]"

// parseTargets reads the values of backup's --target.
func parseTargets(values []string) ([]push.Target, error) {
	var all []push.Target
	for _, v := range values {
		t, err := parseTarget(v)
		if err != nil {
			return nil, usage.Errorf("--target %q: %w", v, err)
		}
		all = append(all, t)
	}
	return all, nil
}

func parseTarget(value string) (push.Target, error) {
	o := splitOptions(value)
	t := push.Target{Disk: o.disk, Path: o.path, Format: qcow2.Qcow2}
	if t.Disk == "" || t.Path == "" {
		return t, fmt.Errorf("want %s", targetForm)
	}
	var backing qcow2.CreateBacking
	given, err := o.read([]option{
		word("driver", &t.Format, qcow2.Qcow2, qcow2.Raw),
		text("backing", "file", &backing.File),
		word("backingformat", &backing.Format, qcow2.Qcow2, qcow2.Raw),
		{"cluster_size", func(val string) error {
			n, err := ParseSize(val)
			if err != nil || n < 512 || n > 2<<20 || n&(n-1) != 0 {
				return fmt.Errorf("cluster_size %q: want a power of two from 512 to 2M", val)
			}
			t.ClusterSize = n
			return nil
		}},
		yesNo("reuse", func(yes bool) { t.Reuse = yes }),
	})
	switch {
	case err != nil:
		return t, err
	case given["backing"] != given["backingformat"]:
		return t, errors.New("backing and backingformat go together: formats are never guessed")
	case given["backing"]:
		t.Backing = &backing
	}
	return t, nil
}

// pushTargets are the files that the backup's XML names.
func (in *XML) pushTargets() ([]push.Target, error) {
	var targets []push.Target
	for _, bd := range in.stores {
		t := push.Target{Disk: bd.Name, Path: bd.Store.Path, Format: qcow2.Qcow2}
		if bd.Format != "" {
			t.Format = qcow2.Format(bd.Format)
		}
		var err error
		switch {
		case t.Format != qcow2.Raw && t.Format != qcow2.Qcow2:
			err = fmt.Errorf("driver type %s: target files are raw or qcow2", bd.Format)
		case bd.Store.Encryption != nil:
			err = errors.New("encrypted target files cannot be written")
		case slices.ContainsFunc(bd.Store.SecLabels, func(l dom.SecLabel) bool { return !l.NoRelabel }):
			err = errors.New("target files cannot be labelled (<seclabel>)")
		}
		if err != nil {
			return nil, usage.Errorf("backup XML: disk %s: %w", bd.Name, err)
		}
		targets = append(targets, t)
	}
	return targets, nil
}
