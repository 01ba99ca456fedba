package conf

import "strings"

// nearest returns the name that a wrong one most likely meant, or nothing when
// none is close. A right name in the wrong group ("idle_timeout" for
// "tunnel.idle_timeout") is close too.
func nearest(wrong string, names []string) string {
	wrong = cut(wrong, 128) // nobody meant more, and the distance costs its square
	best, bestDistance := "", max(1, len(wrong)/3)+1
	for _, name := range names {
		if d := distance(strings.ToLower(wrong), strings.ToLower(name)); d < bestDistance {
			best, bestDistance = name, d
		}
	}
	if best != "" {
		return best
	}
	last := wrong[strings.LastIndexByte(wrong, '.')+1:]
	for _, name := range names {
		if name[strings.LastIndexByte(name, '.')+1:] == last {
			return name
		}
	}
	return ""
}

// distance counts the letters to insert, delete, replace or swap with their
// neighbour to make one text of the other (optimal string alignment).
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(row[j-1]+1, last[j]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

func cut(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}
