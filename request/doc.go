// SPDX-License-Identifier: Apache-2.0

// Package request turns what people say into requests of the engines: backup,
// push, pull and checkpoint. It is said in the words of the command line (the
// values of --disk and --target), in libvirt's XML (domain, domainbackup,
// domaincheckpoint), in both, or by the name that another manager (Lima, Proxmox VE) has for
// a VM.
//
// Nothing is opened here but the files of XML that are named, and those in which such a
// manager keeps its VMs. Every error about what was said is one
// of usage ([usage.Error]): what was handed in is not what libvirt would take, or
// makes no sense beside the rest.
package request
