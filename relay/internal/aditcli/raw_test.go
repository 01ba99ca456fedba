package aditcli

import "testing"

func TestRemediesAreOfCodes(t *testing.T) {
	for code := range remedies {
		if code.Meaning() == "" {
			t.Errorf("there is a remedy for %s, which is no code", code)
		}
	}
}

func TestEscapes(t *testing.T) {
	for typed, want := range map[string]struct {
		out string
		act action
	}{
		"ls\r":            {"ls\r", actNone},
		"~.":              {"", actLeave},
		"ls\r~.more":      {"ls\r", actLeave},
		"a~.":             {"a~.", actNone},
		"~~.":             {"~.", actNone},
		"cd ~/x\r~~\r~x":  {"cd ~/x\r~\r~x", actNone},
		"~?":              {"", actHelp},
		"~?~.":            {"", actLeave},
		"\x1b[A\r~\r~.":   {"\x1b[A\r~\r", actLeave},
		"~":               {"", actNone},
		"echo ~\n~.after": {"echo ~\n", actLeave},
	} {
		e := escapes{start: true}
		out, act := e.filter([]byte(typed))
		if string(out) != want.out || act != want.act {
			t.Errorf("%q sends %q and does %d, want %q and %d", typed, out, act, want.out, want.act)
		}
		// The same, typed key by key.
		e, keyed := escapes{start: true}, ""
		for i := range len(typed) {
			out, act := e.filter([]byte{typed[i]})
			if keyed += string(out); act == actLeave {
				break
			}
		}
		if keyed != want.out {
			t.Errorf("%q key by key sends %q, want %q", typed, keyed, want.out)
		}
	}
}
