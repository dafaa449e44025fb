// SPDX-License-Identifier: Apache-2.0

// Package request turns what people say into requests of the engines: backup,
// push, pull and checkpoint. It is said in the words of the command line (the
// values of --disk and --target), in libvirt's XML (domain, domainbackup,
// domaincheckpoint), or in both.
//
// Nothing is opened here but the files of XML that are named. Every error is one
// of usage ([usage.Error]): what was handed in is not what libvirt would take, or
// makes no sense beside the rest.
package request
