// SPDX-License-Identifier: Apache-2.0

//go:build race

package backup_test

// defaultLives are fewer while races are looked for, which takes three times as long: not each kind of event
// is dealt to one of them then.
const defaultLives = 6
