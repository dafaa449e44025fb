// SPDX-License-Identifier: Apache-2.0

// Package keys is what lies under keys/ in an encrypted repository: who may open it, and
// whose signature counts.
//
//   - The private halves of the repository's keys are age files, one for each member and
//     generation, to that member's own recipient ([Add], [Open]).
//   - The [Roster] says who the members are: role, recipient, public key of signatures,
//     and of a host the domains that it may write. Each revision is signed by an admin of the one
//     before, the first by the key that the repository's configuration names.
//   - All objects are created and never replaced. What has been removed from a roster is
//     still named there, since what it signed is still there, too.
//   - Whoever has a pinned identity ([Pin]) takes no other repository for this one.
//
// Every byte under keys/ may be an attacker's. Nothing is believed of it that is neither in
// a signed roster nor proven against one; all that is read is bounded before.
//
// The layout is specified in docs/format.md ("Keys").
package keys
