// SPDX-License-Identifier: Apache-2.0

//go:build !race

package backup_test

// defaultLives are enough that each kind of event is dealt to one of them.
const defaultLives = 16
