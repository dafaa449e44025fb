// SPDX-License-Identifier: Apache-2.0

package keys

import "fmt"

// Error says that a key is missing, or is not of this repository: which one is needed, and
// for what. It is no damage.
type Error struct{ What string }

func (e *Error) Error() string { return e.What }

// CheckAbsent is what a pinned identity says of a repository that is not encrypted.
func (p *Pin) CheckAbsent() error {
	if p == nil {
		return nil
	}
	return &Error{What: fmt.Sprintf("the identity belongs to the encrypted repository %s, and this one says that it is not encrypted: it was replaced, or is another one", p.Repository)}
}
