// SPDX-License-Identifier: Apache-2.0

package trust

// Reason says as a code, for programs, why a disk is backed up as it is. The
// manifest keeps it beside a sentence for people.
type Reason string

const (
	ReasonTrusted      Reason = "trusted"       // the bitmap stood every check
	ReasonRequested    Reason = "requested"     // a full was asked for
	ReasonFirst        Reason = "first"         // the repository holds no state of the disk
	ReasonUnchanged    Reason = "unchanged"     // no file of the image was touched
	ReasonRaw          Reason = "raw"           // raw images have no bitmaps
	ReasonForeign      Reason = "foreign"       // the image is not read natively
	ReasonVersion2     Reason = "qcow2-v2"      // nor have qcow2 images of version 2
	ReasonDirty        Reason = "image-dirty"   // the image was not closed cleanly
	ReasonCorrupt      Reason = "image-corrupt" // QEMU marked the image corrupt
	ReasonDataFileRaw  Reason = "data-file-raw" // the data file can be written past the bitmaps
	ReasonUnusable     Reason = "bitmaps-unusable"
	ReasonMissing      Reason = "bitmap-missing"
	ReasonInUse        Reason = "bitmap-in-use"
	ReasonDisabled     Reason = "bitmap-disabled"
	ReasonBroken       Reason = "bitmap-broken"
	ReasonGranularity  Reason = "granularity-changed"
	ReasonBacking      Reason = "backing-changed"
	ReasonSnapshots    Reason = "snapshots-changed"
	ReasonOtherDisk    Reason = "other-disk"              // the image was another disk's at the checkpoint
	ReasonWitness      Reason = "witnesses-differ"        // two bitmaps tell different stories
	ReasonContradicted Reason = "record-contradicts"      // a later archive saw bits that are gone
	ReasonMap          Reason = "map-contradicts"         // archived data vanished without a mark
	ReasonContent      Reason = "content-contradicts"     // a clean range does not read as archived
	ReasonMoved        Reason = "cluster-map-contradicts" // a clean range lies elsewhere, and does not read as archived
	ReasonArchive      Reason = "archive-damaged"         // what the increment would build on is broken
	ReasonForgotten    Reason = "forgotten-damaged"       // what forgotten checkpoints left can't be read
	ReasonRecordsLost  Reason = "records-lost"            // what testified for the bitmap was damaged
	ReasonUnreadable   Reason = "image-unreadable"        // a disk that fails, in a salvage
	ReasonImported     Reason = "imported"                // somebody else has left it, and no bitmap is asked
	ReasonNoCheckpoint Reason = "no-such-checkpoint"
	ReasonNoData       Reason = "checkpoint-without-data"
	ReasonBrokenLine   Reason = "line-broken" // recorded bitmaps do not link the checkpoints
)
