// SPDX-License-Identifier: Apache-2.0

// Package suggest finds out what a person meant who typed a name that is not known.
package suggest

import "strings"

// DidYouMean ends an error's text with a hint; none, if there is none.
func DidYouMean(hint string) string {
	if hint == "" {
		return ""
	}
	return ": did you mean " + hint + "?"
}

// Near is the one of known that a person who typed word most likely meant; empty:
// none is near.
func Near(word string, known []string) string {
	best, nearest := "", min(2, (len(word)+1)/3)+1
	for _, k := range known {
		d := distance(strings.ToLower(word), strings.ToLower(k))
		if d > 0 && len(word) >= 3 && strings.HasPrefix(strings.ToLower(k), strings.ToLower(word)) {
			d = 1
		}
		if d < nearest {
			best, nearest = k, d
		}
	}
	return best
}

// distance counts the letters that have to be put in, left out, exchanged, or
// swapped with their neighbours, to make b of a.
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	rows := [3][]int{make([]int, len(y)+1), make([]int, len(y)+1), make([]int, len(y)+1)}
	for j := range rows[1] {
		rows[1][j] = j
	}
	for i := 1; i <= len(x); i++ {
		before, last, now := rows[(i-1)%3], rows[i%3], rows[(i+1)%3]
		now[0] = i
		for j := 1; j <= len(y); j++ {
			cost := 1
			if x[i-1] == y[j-1] {
				cost = 0
			}
			now[j] = min(last[j]+1, now[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				now[j] = min(now[j], before[j-2]+1)
			}
		}
	}
	return rows[(len(x)+1)%3][len(y)]
}
