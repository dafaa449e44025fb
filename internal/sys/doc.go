// SPDX-License-Identifier: Apache-2.0

// Package sys is what this program has learnt about the kernel's calls on files,
// each lesson in one place.
//
// Invariants:
//
//   - A call that a signal interrupts is made again ([Restart], [Control]): the
//     runtime sends itself many, and file systems like FUSE and NFS end a call
//     for any of them.
//   - A flock that another holds ([ErrLocked]), a file system without flocks
//     ([ErrNoLocks]) and a failure are three different answers.
//   - What waits, waits in [Retry], and ends with its context.
//   - What a run makes under a temporary name it has locked as long as it lives
//     ([CreateLocked], [MkdirLocked]); only a lock that was really had proves that
//     nobody works on such a name any more ([Sweep]).
//   - A folder is synced by a [FolderSyncer]: a file system that cannot do that is
//     told of once, a medium that fails to is an error.
//   - Names are looked up in an open folder, and no symbolic link is followed
//     there ([OpenAt] and its like).
package sys
