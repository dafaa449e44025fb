// SPDX-License-Identifier: Apache-2.0

// Package newhost brings the domains of a repository back on a host that has none of them:
// each into a folder of its own, DIR/DOMAIN, with its disks, its firmware's files, and its
// definition, which names them there.
//
// Invariants:
//
//   - Nothing of any domain is written before all of them were looked at: what the
//     repository has, which names and folders there are, and how much room ([Host.Plan]).
//   - A domain's folder appears under its name whole and durable, with a record of what is
//     in it. What killed runs have left has another name, and is removed by the next run.
//   - What stands under a domain's name is never touched. If its record says that it was
//     restored from this repository, the domain is done; else it is in the way, and all
//     is refused.
//   - One domain that fails keeps no other from being restored.
//   - A repository is not trusted to name files: a domain's folder is its name, which was
//     checked, and was tried to be another than every other domain's on this file system.
package newhost
