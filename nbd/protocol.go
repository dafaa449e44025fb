// SPDX-License-Identifier: Apache-2.0

package nbd

// The magic numbers.
const (
	magicInit       = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     = 0x49484156454f5054 // "IHAVEOPT"
	magicOptReply   = 0x0003e889045565a9
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef
)

// Handshake flags, of the server and of the client.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Transmission flags.
const (
	flagHasFlags        = 1 << 0
	flagReadOnly        = 1 << 1
	flagSendFlush       = 1 << 2
	flagSendFUA         = 1 << 3
	flagSendTrim        = 1 << 5
	flagSendWriteZeroes = 1 << 6
	flagSendDF          = 1 << 7
	flagCanMultiConn    = 1 << 8
)

// Options.
const (
	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optStartTLS        = 5
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMetaContext = 9
	optSetMetaContext  = 10
)

// Replies to options.
const (
	repAck         = 1
	repServer      = 2
	repInfo        = 3
	repMetaContext = 4

	repError      = 1 << 31 // the bit that all errors have
	repErrUnsup   = repError + 1
	repErrPolicy  = repError + 2
	repErrInvalid = repError + 3
	repErrTLSReqd = repError + 5
	repErrUnknown = repError + 6
	repErrTooBig  = repError + 9
)

// Information about an export.
const (
	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3
)

// Commands.
const (
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdWriteZeroes = 6
	cmdBlockStatus = 7
)

// Flags of commands.
const (
	cmdFlagFUA    = 1 << 0
	cmdFlagNoHole = 1 << 1
	cmdFlagDF     = 1 << 2
	cmdFlagReqOne = 1 << 3
)

// Chunks of a structured reply.
const (
	replyFlagDone = 1 << 0

	replyNone        = 0
	replyOffsetData  = 1
	replyOffsetHole  = 2
	replyBlockStatus = 5
	replyError       = 1<<15 + 1
	replyErrorOffset = 1<<15 + 2
)

// The lengths of fixed parts, bytes.
const (
	optionHeadLen     = 16
	optReplyHeadLen   = 20
	requestLen        = 28
	simpleReplyLen    = 16
	chunkHeadLen      = 20
	exportNamePadding = 124
)

// Limits of the protocol itself.
const (
	maxString        = 4096 // bytes of a name or a message
	maxPayload       = 32 << 20
	maxStatusExtents = 1 << 20 // descriptors of one block status chunk
)

// The flags of the context base:allocation.
const (
	StateHole = 1 << 0 // not allocated
	StateZero = 1 << 1 // reads as zeros
)

// StateDirty is the flag of a qemu:dirty-bitmap context.
const StateDirty = 1 << 0

// Names of contexts.
const (
	// BaseAllocation is the context that says what is a hole and what is zero.
	BaseAllocation = "base:allocation"
	// DirtyBitmapPrefix and a bitmap's name make the context of a dirty bitmap, as
	// QEMU names it.
	DirtyBitmapPrefix = "qemu:dirty-bitmap:"
)
