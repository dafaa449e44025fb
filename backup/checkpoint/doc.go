// SPDX-License-Identifier: Apache-2.0

// Package checkpoint is what can be done with checkpoints besides making one together
// with a backup: one without data can be created, or redefined whose definition was lost,
// and of every one can be told what changed since.
//
// Deleting is a plan first: [PlanDelete] looks at the repository and at every image and
// decides, [Deletion] can be shown, and [Deletion.Run] carries it out, once.
package checkpoint
