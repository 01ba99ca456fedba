package caller_test

import (
	"fmt"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/caller"
)

func trusted(a netip.Addr) bool {
	return netip.MustParsePrefix("10.0.0.0/8").Contains(a) || netip.MustParsePrefix("fd00::/8").Contains(a)
}

func TestUser(t *testing.T) {
	for _, c := range []struct {
		name, peer string
		forwarded  []string
		want       string
	}{
		{"nobody in between", "192.0.2.7:1000", nil, "192.0.2.7"},
		{"a stranger says who it is", "192.0.2.7:1000", []string{"203.0.113.9"}, "192.0.2.7"},
		{"a stranger says it is a proxy", "192.0.2.7:1000", []string{"10.0.0.1"}, "192.0.2.7"},
		{"a trusted proxy", "10.0.0.1:1000", []string{"192.0.2.7"}, "192.0.2.7"},
		{"a trusted proxy that says nothing", "10.0.0.1:1000", nil, "10.0.0.1"},
		{"a user who forges what the proxy adds to", "10.0.0.1:1000", []string{"203.0.113.9, 192.0.2.7"}, "192.0.2.7"},
		{"forged in a field of its own", "10.0.0.1:1000", []string{"203.0.113.9", "192.0.2.7"}, "192.0.2.7"},
		{"forged to look like a proxy behind the user", "10.0.0.1:1000", []string{"203.0.113.9, 10.0.0.9, 192.0.2.7"}, "192.0.2.7"},
		{"two trusted proxies", "10.0.0.1:1000", []string{"203.0.113.9, 192.0.2.7, 10.0.0.2"}, "192.0.2.7"},
		{"two trusted proxies, a field each", "10.0.0.1:1000", []string{"192.0.2.7", "10.0.0.2"}, "192.0.2.7"},
		{"proxies all the way", "10.0.0.1:1000", []string{"10.0.0.3, 10.0.0.2"}, "10.0.0.3"},
		{"rubbish stops the reading", "10.0.0.1:1000", []string{"192.0.2.7, unknown, 10.0.0.2"}, "10.0.0.2"},
		{"an empty element stops it", "10.0.0.1:1000", []string{"192.0.2.7,"}, "10.0.0.1"},
		{"with a port", "10.0.0.1:1000", []string{"192.0.2.7:4711"}, "192.0.2.7"},
		{"IPv6 in brackets", "[fd00::1]:1000", []string{"[2001:db8::7]"}, "2001:db8::7"},
		{"IPv6 in brackets with a port", "[fd00::1]:1000", []string{"[2001:db8::7]:4711"}, "2001:db8::7"},
		{"IPv4 in IPv6", "[::ffff:10.0.0.1]:1000", []string{"::ffff:192.0.2.7"}, "192.0.2.7"},
		{"no address at all", "@", []string{"192.0.2.7"}, "invalid IP"},
	} {
		r := &http.Request{RemoteAddr: c.peer, Header: http.Header{"X-Forwarded-For": c.forwarded}}
		if got := caller.User(r, trusted).String(); got != c.want {
			t.Errorf("%s: the user is %s, want %s", c.name, got, c.want)
		}
	}
}

func TestKey(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7": "192.0.2.7", "::ffff:192.0.2.7": "192.0.2.7", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::",
		"2001:db8:1:2::9": "2001:db8:1:2::", "fe80::1%eth0": "fe80::", "pipe": "pipe", "": "",
	} {
		if got := caller.Key(in); got != want {
			t.Errorf("%q counts as %q, want %q", in, got, want)
		}
	}
}

func TestLimits(t *testing.T) {
	now := time.Unix(1000, 0)
	l := caller.NewLimits(2*time.Second, 3, 10)
	for range 3 {
		if l.Wait("2001:db8::1", now) != 0 || !l.Take("2001:db8::2", now) {
			t.Fatal("the burst is allowed, to a network as a whole")
		}
	}
	if l.Take("2001:db8::3", now) {
		t.Error("a fourth try is one too many")
	}
	if d := l.Wait("2001:db8::4", now); d != 2*time.Second {
		t.Errorf("the next try is in %s, want 2 s", d)
	}
	if !l.Take("192.0.2.1", now) {
		t.Error("others may")
	}
	if !l.Take("2001:db8::5", now.Add(2*time.Second)) {
		t.Error("after the wait it may")
	}
}

func TestLimitsForgetWhoIsAsGoodAsNew(t *testing.T) {
	now := time.Unix(1000, 0)
	l := caller.NewLimits(time.Second, 2, 10)
	for i := range 9 {
		l.Take(fmt.Sprintf("192.0.2.%d", i), now)
	}
	now = now.Add(time.Minute)
	l.Take("198.51.100.1", now)
	l.Take("198.51.100.1", now)
	l.Take("203.0.113.1", now) // an eleventh address makes room
	if l.Wait("198.51.100.1", now) == 0 {
		t.Error("who has just used up its tries was forgotten, and others were not")
	}
	for i := range 1000 { // more than are kept: bounded, and nobody is locked out
		if !l.Take(fmt.Sprintf("2001:db8:%x::1", i), now) {
			t.Fatal("a new address may try")
		}
	}
}

func TestATryThatIsNone(t *testing.T) {
	now := time.Unix(1000, 0)
	l := caller.NewLimits(2*time.Second, 2, 10)
	for i := range 5 {
		undo, ok := l.Reserve("192.0.2.1", now)
		if !ok {
			t.Fatalf("try %d is one too many, and those before it were given back", i+1)
		}
		undo()
	}
	for range 2 {
		if _, ok := l.Reserve("192.0.2.1", now); !ok {
			t.Fatal("the burst is allowed")
		}
	}
	if _, ok := l.Reserve("192.0.2.1", now); ok {
		t.Error("a third try is one too many")
	}
	if d := l.Wait("192.0.2.1", now); d != 2*time.Second {
		t.Errorf("the next try is in %s, want 2 s: the refused one counts", d)
	}
}
