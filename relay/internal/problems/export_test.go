package problems

import "github.com/adit-tunnel/adit/shared/api"

// Titles are the headings of pages.
func Titles() map[api.Code]string { return titles }
