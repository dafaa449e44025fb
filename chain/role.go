// SPDX-License-Identifier: Apache-2.0

package chain

import (
	"errors"
	"fmt"
	"strconv"
)

// RoleError says that a key is not one of those that may do something: what it signs for that
// counts for nobody.
type RoleError struct {
	Name  string // whose key it is
	What  string // "forget a checkpoint": completes "may not …"
	Admin bool   // a manager's may not, either
}

func (e *RoleError) Error() string {
	if e.Admin {
		return fmt.Sprintf("the key of %s may not %s: an admin's may", e.Name, e.What)
	}
	return fmt.Sprintf("the key of %s may not %s: a manager's or an admin's may", e.Name, e.What)
}

// checkRole says why what somebody signs does not count under a key, whatever it is.
func checkRole(k Key, who Author) error {
	if who.Manages() {
		return nil
	}
	name := who.AuthorName()
	switch {
	case k.Kind == KeyDrill && who.Rehearses():
		return nil
	case k.Kind == KeyDrill:
		return &RoleError{Name: name, What: "record a drill"}
	case who.Rehearses():
		return &RoleError{Name: name, What: "store anything but records of drills"}
	case k.Domain != "" && !who.Covers(k.Domain):
		return &NotYoursError{Name: name, Domain: k.Domain}
	}
	switch k.Kind {
	case KeyLease, KeyStrike:
		if k.Host != name {
			return &RoleError{Name: name, What: "have leases in " + leasesPrefix + k.Host}
		}
	case KeyMark:
		return &RoleError{Name: name, What: "prune"}
	case KeyForgotten:
		return &RoleError{Name: name, What: "forget a checkpoint"}
	case KeyProofs:
		return &RoleError{Name: name, What: "say what was proven when"}
	case KeyLocked:
		return &RoleError{Name: name, What: "say what was kept on when"}
	}
	return nil
}

// checkSlotRole says why what somebody signs does not count where a manifest stands. Only who
// manages changes what stands in a slot: of what a host puts there nobody could tell what it
// has taken away by it.
func checkSlotRole(v any, who Author) error {
	if who == nil || who.Manages() {
		return nil
	}
	switch v := v.(type) {
	case *Void:
		return &RoleError{Name: who.AuthorName(), What: "take away a checkpoint"}
	case *Manifest:
		if v.Revision > 1 {
			return &RoleError{Name: who.AuthorName(), What: "change a checkpoint, and this is its revision " + strconv.Itoa(v.Revision)}
		}
	}
	return nil
}

// manages returns a *RoleError unless who has opened the repository may change what others
// have stored.
func (r *Repository) manages() error {
	if r.authority() == nil {
		return nil
	}
	if me := r.authority().Self(); !me.Manages() {
		return &RoleError{Name: me.AuthorName(), What: "change what others have stored"}
	}
	return nil
}

// CheckManages returns a *RoleError if only a manager or an admin may do something, and
// the repository was opened by somebody else. what completes "may not …".
func (r *Repository) CheckManages(what string) error {
	var role *RoleError
	if err := r.manages(); errors.As(err, &role) {
		role.What = what
		return role
	}
	return nil
}

// CheckRehearses returns a *RoleError unless records of drills count from who has opened the repository.
func (r *Repository) CheckRehearses() error {
	if r.authority() == nil {
		return nil
	}
	return checkRole(Key{Kind: KeyDrill}, r.authority().Self())
}
