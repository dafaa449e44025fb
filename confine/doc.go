// SPDX-License-Identifier: Apache-2.0

// Package confine starts programs that read what nobody trusts so that the kernel lets
// them do no more than they were started for, and takes from this process what it has no
// use for.
//
// [Start] is for what works on files that are known, qemu-img and qemu-nbd: it is bound to them, and to
// harmless system calls. [StartApart] is for what needs devices, other programs and mounts, as a
// virtual machine or an appliance does: it becomes a user that nobody else is, in namespaces
// of its own, with limits. [Restrict] and [KeepMemory] are for this process itself.
//
// Invariants of Start:
//
//   - A program opens the files that its [Access] names, and those that every program
//     needs (libraries, /dev/null); whatever an image's header says, the kernel refuses
//     the rest (Landlock).
//   - It makes no connection, and traces, mounts, changes owners and modes of nothing
//     (seccomp); it gets no new privileges, no environment, and no descriptor but those
//     that it is given.
//   - It is bound before it begins, and not by itself: the thread that starts it is
//     restricted first and ends with it. Nothing of that reaches the rest of this process.
//   - A limit on memory is for what only reads ([Access.Memory]). One that stops a program
//     while it writes into an image costs the image's bitmaps.
//   - A kernel without Landlock or seccomp is no reason to do nothing: what it has is
//     used, and [Kernel] says what it lacks. A kernel that has them and refuses is an
//     error.
//
// Invariants of StartApart:
//
//   - What is possible is tried from the tightest on; what was possible is told.
//   - A program inherits no descriptor that it was not given, and of the environment
//     what it was given.
//   - It ends with us: the kernel kills it when we die.
//
// The variable IMGBACKUP_CONFINE in the environment, set to off, is how a person goes
// without; [Off] reports it.
package confine
