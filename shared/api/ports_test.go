package api_test

import (
	"strings"
	"testing"

	"github.com/adit-tunnel/adit/shared/api"
)

func TestParsePorts(t *testing.T) {
	tests := []struct {
		in      string
		yes, no []uint16
	}{
		{"1-65535", []uint16{1, 22, 65535}, []uint16{0}},
		{"8188", []uint16{8188}, []uint16{8187, 8189, 0}},
		{" 8188 , 8888 - 8899 ", []uint16{8188, 8888, 8890, 8899}, []uint16{8887, 8900, 1}},
		{"65535,1", []uint16{65535, 1}, []uint16{2}},
	}
	for _, tt := range tests {
		p, err := api.ParsePorts(tt.in)
		if err != nil {
			t.Errorf("%q: %v", tt.in, err)
			continue
		}
		for _, n := range tt.yes {
			if !p.Contain(n) {
				t.Errorf("%q does not contain %d", tt.in, n)
			}
		}
		for _, n := range tt.no {
			if p.Contain(n) {
				t.Errorf("%q contains %d", tt.in, n)
			}
		}
	}
	for _, in := range []string{"", " ", ",", "0", "65536", "-1", "8188-", "-8188", "9-8", "a", "1,,2", "+5", "1-2-3", "0x10", "８", strings.Repeat("1,", 300) + "1"} {
		if _, err := api.ParsePorts(in); err == nil {
			t.Errorf("%.40q was taken", in)
		}
	}
	if (api.Ports{}).Contain(8188) {
		t.Error("no policy allows a port")
	}
}

func FuzzParsePorts(f *testing.F) {
	for _, s := range []string{"1-65535", "8188,8888-8899", "", "0", "9-8", "1,2,3", " 7 - 9 ", "65535-65536", "-", "--", "1-2-3", "+1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := api.ParsePorts(s)
		if err != nil {
			return
		}
		if p.Contain(0) {
			t.Fatalf("%q contains port 0", s)
		}
		again, err := api.ParsePorts(p.String())
		if err != nil {
			t.Fatalf("%q is written as %q, which does not parse: %v", s, p, err)
		}
		for n := range uint32(65536) {
			if p.Contain(uint16(n)) != again.Contain(uint16(n)) {
				t.Fatalf("%q and its text %q differ on port %d", s, p, n)
			}
		}
	})
}
