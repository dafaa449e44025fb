// SPDX-License-Identifier: Apache-2.0

// Package report says of a repository what a person wants to know first: is all well, and
// if not, what is wrong; and then shows each domain's life: its checkpoints and branches,
// where its disks change, how it grows, what retention forgets next, and its drills.
//
// [Make] computes a [Report] from manifests alone: no data is read. [Report.HTML] makes a
// page of it that stands by itself, and [Report.Pages] a folder of pages. Every number on
// a page is in the report's JSON, which the page names beside it.
package report
