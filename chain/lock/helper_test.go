// SPDX-License-Identifier: Apache-2.0

package lock

import "math/rand/v2"

func rng() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }
