// SPDX-License-Identifier: Apache-2.0

package guestfs

import "testing"

func TestDynamic(t *testing.T) {
	t.Parallel()
	mbr := func(kind byte, head string) []byte {
		b := make([]byte, tableSize)
		b[mbrTypes+16] = kind
		copy(b[privHead:], head)
		return b
	}
	gpt := func(at int) []byte {
		b := mbr(0xee, "")
		copy(b[512:], "EFI PART")
		copy(b[at:], ldmMetadata)
		return b
	}
	for name, c := range map[string]struct {
		head []byte
		want bool
	}{
		"MBR":             {mbr(mbrLDM, "PRIVHEAD"), true},
		"another type":    {mbr(7, "PRIVHEAD"), false},
		"of the old SFS":  {mbr(mbrLDM, ""), false},
		"GPT":             {gpt(gptFirst + gptEntry), true},
		"its last entry":  {gpt(tableSize - gptEntry), true},
		"not at an entry": {gpt(gptFirst + 16), false},
		"a short disk":    {mbr(mbrLDM, "PRIVHEAD")[:tableSize-1], false},
		"nothing":         {nil, false},
	} {
		if got := isDynamic(c.head); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
