package ident_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/adit-tunnel/adit/shared/ident"
)

func TestParse(t *testing.T) {
	hex32 := strings.Repeat("0a", 16)
	for _, c := range []struct {
		kind  string
		parse func(string) (string, error)
		good  []string
		bad   []string
	}{
		{"team", text(ident.ParseTeamID),
			[]string{"4bf92f35-77b3-4da6-a3ce-929d0e0e4736", "00000000-0000-0000-0000-000000000000"},
			[]string{"", "4bf92f3577b34da6a3ce929d0e0e4736", "4bf92f35-77b3-4da6-a3ce-929d0e0e473g", "{4bf92f35-77b3-4da6-a3ce-929d0e0e4736}", "4bf92f35-77b3-4da6-a3ce-929d0e0e4736\n", "urn:uuid:4bf92f35-77b3-4da6-a3ce-929d0e0e4736"}},
		{"agent", text(ident.ParseAgentID),
			[]string{"a", "GPU-7.rack_2", "0", strings.Repeat("a", 63)},
			[]string{"", "-a", ".", "..", "a/b", "a b", "ä", "a\x00", "a\n", strings.Repeat("a", 64)}},
		{"relay", text(ident.ParseRelayID), []string{"relay-1"}, []string{"", "_a", "a%2f"}},
		{"session", text(ident.ParseSessionID),
			[]string{hex32},
			[]string{"", hex32[1:], hex32 + "0", strings.ToUpper(hex32), strings.Repeat("g", 32), hex32[:31] + "\n"}},
		{"task", text(ident.ParseTaskID),
			[]string{"1", "train:epoch=3@host+x", strings.Repeat("a", 128)},
			[]string{"", " a", "a/b", ":a", "a?b", strings.Repeat("a", 129)}},
		{"credential", text(ident.ParseCredentialID),
			[]string{"cred_0123456789abcdef"}, []string{"", "cred_", "cred_0123456789ABCDEF", "0123456789abcdef", "cred_0123456789abcdef0"}},
		{"viewer", text(ident.ParseViewerID), []string{"0123456789abcdef"}, []string{"", "0123456789abcde", "../../../../etc/p"}},
		{"request", text(ident.ParseRequestID), []string{"a", "00-4bf9.x_y", strings.Repeat("r", 64)}, []string{"", "a b", "a\r\nSet-Cookie: x", strings.Repeat("r", 65)}},
	} {
		for _, s := range c.good {
			if got, err := c.parse(s); err != nil || got != s {
				t.Errorf("%s %q should be accepted as it is; got %q, %v", c.kind, s, got, err)
			}
		}
		for _, s := range c.bad {
			if got, err := c.parse(s); !errors.Is(err, ident.ErrInvalid) || got != "" {
				t.Errorf("%s %q should be refused; got %q, %v", c.kind, s, got, err)
			}
		}
	}
	if got, _ := ident.ParseTeamID("4BF92F35-77B3-4DA6-A3CE-929D0E0E4736"); got != "4bf92f35-77b3-4da6-a3ce-929d0e0e4736" {
		t.Errorf("a team in capitals should be the same team; got %q", got)
	}
}

// text makes parsers of all types comparable.
func text[T ~string](parse func(string) (T, error)) func(string) (string, error) {
	return func(s string) (string, error) {
		v, err := parse(s)
		return string(v), err
	}
}

func TestNewIDsAreValidAndDifferent(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		session, credential, task := ident.NewSessionID(), ident.NewCredentialID(), ident.NewTaskID()
		viewer, request, nonce := ident.NewViewerID(), ident.NewRequestID(), ident.NewNonce()
		_, e1 := ident.ParseSessionID(string(session))
		_, e2 := ident.ParseCredentialID(string(credential))
		_, e3 := ident.ParseTaskID(string(task))
		_, e4 := ident.ParseViewerID(string(viewer))
		_, e5 := ident.ParseRequestID(string(request))
		if err := errors.Join(e1, e2, e3, e4, e5); err != nil {
			t.Fatalf("a fresh id should be valid: %v", err)
		}
		for _, id := range []string{string(session), string(credential), string(task), string(viewer), string(request), nonce} {
			if seen[id] {
				t.Fatalf("%s was made twice", id)
			}
			seen[id] = true
		}
	}
}

func TestSecretNeverShows(t *testing.T) {
	s := ident.NewSecret(ident.PrefixIntegration)
	value := strings.TrimPrefix(s.Reveal(), ident.PrefixIntegration)
	if len(value) != 40 || s.Reveal()[:3] != "sk-" {
		t.Fatalf("a secret is its prefix and 40 characters; got %d", len(value))
	}
	key := ident.ClusterKey{0x41, 0x42, 0x43}
	segment := key.Segment(ident.NewSessionID())
	asJSON, err := json.Marshal(map[string]any{"s": s, "list": []ident.Secret{s}})
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "s", s, "key", key, "segment", segment)
	_, token, _ := segment.Split()
	for _, shown := range []string{
		fmt.Sprint(s), fmt.Sprintf("%v %+v %#v %s %q", s, s, s, s, s), string(asJSON), log.String(),
		fmt.Sprintf("%v %s", key, key), fmt.Sprintf("%+v", struct{ S ident.Secret }{s}),
	} {
		for _, hidden := range []string{value, token, "ABC", "65 66 67"} {
			if strings.Contains(shown, hidden) {
				t.Errorf("a secret shows in %q", shown)
			}
		}
	}
	if s.DisplayPrefix() != s.Reveal()[:12] || ident.Secret("short").DisplayPrefix() != "" {
		t.Error("12 characters may be shown, of a short secret none")
	}
	var read ident.Secret
	if err := read.UnmarshalText([]byte("sk-x")); err != nil || read.Reveal() != "sk-x" {
		t.Error("a secret should be read from text")
	}
}

func TestSecretMatches(t *testing.T) {
	s := ident.Secret("sk-known")
	// Stored hashes must survive a new version; this one is Python's hashlib's.
	if want := "2771b99088d32abeaa69d9b10c0d0009a278134b2126e8a334d2416aee674e07"; s.Hash() != want {
		t.Errorf("the hash of a known secret changed: got %s, want %s", s.Hash(), want)
	}
	if !s.Matches(s.Hash()) {
		t.Error("a secret should match its own hash")
	}
	for _, wrong := range []string{"", s.Hash()[:63], strings.ToUpper(s.Hash()), ident.Secret("sk-other").Hash()} {
		if s.Matches(wrong) {
			t.Errorf("the secret should not match %q", wrong)
		}
	}
}

// goldenToken was computed by another program (Python's hmac and base64 modules).
const goldenToken = "iph7cr5qrxfbwzsubyztzzacmq"

func TestSegment(t *testing.T) {
	key, other := ident.ClusterKey{1}, ident.ClusterKey{2}
	id := ident.SessionID("000102030405060708090a0b0c0d0e0f")
	segment := key.Segment(id)
	// A fixed value: URLs must survive a new version of the relay.
	if want := ident.Segment("000102030405060708090a0b0c0d0e0f-" + goldenToken); segment != want {
		t.Errorf("the segment of a known key and session changed: got %s, want %s", string(segment), string(want))
	}
	if len(segment) != ident.SegmentLength || len(segment) > 63 || strings.ToLower(string(segment)) != string(segment) {
		t.Errorf("a segment should be a lower-case DNS label of %d characters; got %d", ident.SegmentLength, len(segment))
	}
	if got, ok := key.Verify(segment); !ok || got != id {
		t.Errorf("a key should accept its own segment; got %s, %t", got, ok)
	}
	if _, ok := other.Verify(segment); ok {
		t.Error("another key's segment should be refused")
	}
	if _, ok := key.Verify(ident.Segment(string(ident.NewSessionID()) + string(segment[32:]))); ok {
		t.Error("a token should be good for its own session only")
	}
	for i := range len(segment) {
		wrong := []byte(segment)
		wrong[i] ^= 1
		if _, ok := key.Verify(ident.Segment(wrong)); ok {
			t.Errorf("a segment with byte %d changed should be refused", i)
		}
	}
	for _, bad := range []string{"", string(segment[:58]), string(segment) + "a", strings.ToUpper(string(segment)), strings.Replace(string(segment), "-", "_", 1), string(id) + "-" + strings.Repeat("1", 26), string(id) + "-" + strings.Repeat("a", 12) + "." + strings.Repeat("a", 13)} {
		if _, _, err := ident.Segment(bad).Split(); !errors.Is(err, ident.ErrInvalid) {
			t.Errorf("%q is no segment; got %v", bad, err)
		}
		if v := ident.Segment(bad).LogValue().String(); v != "[redacted]" {
			t.Errorf("what is no segment should be hidden whole; got %q", v)
		}
	}
}

func FuzzSegment(f *testing.F) {
	key := ident.ClusterKey{7}
	good := string(key.Segment("000102030405060708090a0b0c0d0e0f"))
	for _, seed := range []string{"", good, good[:58] + "b", strings.ToUpper(good), good + "/", "-", strings.Repeat("-", 59), good[:33] + strings.Repeat("ä", 13)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, token, err := ident.Segment(s).Split()
		if err == nil && string(id)+"-"+token != s {
			t.Errorf("split lost something of %q", s)
		}
		got, ok := key.Verify(ident.Segment(s))
		if ok && (err != nil || key.Segment(got) != ident.Segment(s)) {
			t.Errorf("%q should not be accepted", s)
		}
		if shown := ident.Segment(s).LogValue().String(); token != "" && strings.Contains(shown, token) {
			t.Errorf("the token of %q shows in a log", s)
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"", "a", "4bf92f35-77b3-4da6-a3ce-929d0e0e4736", "cred_0123456789abcdef", "a/b", "..", "\xff"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, parse := range []func(string) (string, error){
			text(ident.ParseTeamID), text(ident.ParseAgentID), text(ident.ParseRelayID), text(ident.ParseSessionID),
			text(ident.ParseTaskID), text(ident.ParseCredentialID), text(ident.ParseViewerID), text(ident.ParseRequestID),
		} {
			got, err := parse(s)
			if err != nil {
				continue
			}
			if !strings.EqualFold(got, s) || strings.ContainsAny(got, "/ \r\n\x00\\%") {
				t.Errorf("%q was accepted as %q: ids go into keys, paths and headers", s, got)
			}
		}
	})
}
