package identity_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/adit-tunnel/adit/relay/internal/access"
	"github.com/adit-tunnel/adit/relay/internal/identity"
	"github.com/adit-tunnel/adit/shared/ident"
)

// made is an identity with a clock of the test's.
func made(t testing.TB, now *time.Time) (*identity.Identity, *prometheus.Registry) {
	t.Helper()
	reg := prometheus.NewRegistry()
	i, err := identity.New(identity.Config{Key: ident.ClusterKey{9}, Issuer: "https://relay.example", Now: func() time.Time { return *now }, Registerer: reg})
	if err != nil {
		t.Fatal(err)
	}
	return i, reg
}

func fields(t testing.TB, i *identity.Identity, v access.Viewer, session ident.SessionID) string {
	t.Helper()
	f, err := i.Fields(&v, session)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Signing is not for each request: what is said is kept while it is true and the token
// has some time left.
func TestSignedOnceForAWhile(t *testing.T) {
	now := time.Now()
	i, reg := made(t, &now)
	signed := func() float64 {
		n, err := reg.Gather()
		if err != nil || len(n) != 1 {
			t.Fatal(n, err)
		}
		return n[0].GetMetric()[0].GetCounter().GetValue()
	}
	alice := access.Viewer{User: "alice", Name: "Alice", Groups: []string{"a"}}
	first := fields(t, i, alice, "s1")
	now = now.Add(2 * time.Minute)
	if fields(t, i, alice, "s1") != first || signed() != 1 {
		t.Errorf("within two minutes %v were signed", signed())
	}
	renamed, moved := alice, alice
	renamed.Name, moved.Groups = "Alicia", []string{"a", "b"}
	for n, f := range []string{
		fields(t, i, alice, "s2"), fields(t, i, access.Viewer{User: "bob", Name: "Alice"}, "s1"), fields(t, i, renamed, "s1"), fields(t, i, moved, "s1"),
	} {
		if f == first || signed() != 5 {
			t.Errorf("%d: another tunnel, person, name or group is said as the first one", n)
		}
	}
	again := fields(t, i, alice, "s1")
	now = now.Add(3 * time.Minute)
	if fields(t, i, alice, "s1") == again {
		t.Error("a token near its end is given out")
	}
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
}

// Who is not known is not named, whatever they say of themselves.
func TestNobodyIsNamedWhoIsNotKnown(t *testing.T) {
	now := time.Now()
	i, _ := made(t, &now)
	for _, v := range []access.Viewer{{}, {Name: "Alice", How: access.ByKnock}, {Name: "sk:ci", How: access.ByCredential}, {How: access.ByPIN}} {
		if f := fields(t, i, v, "s"); f != "" {
			t.Errorf("%+v is said to be %q", v, f)
		}
	}
}

// No text ends a field or begins one, and each can be had back.
func TestValuesAreSafe(t *testing.T) {
	now := time.Now()
	i, _ := made(t, &now)
	for text, want := range map[string]string{
		"alice": "alice", "auth0|5f7c": "auth0|5f7c", "Ada Lovelace": "Ada Lovelace", "100%": "100%25", "Ä": "%C3%84", " a ": "%20a%20", "": "",
		"a\r\nX-Adit-User: root": "a%0D%0AX-Adit-User: root", "\x00\x7f\xff": "%00%7F%FF", "李": "%E6%9D%8E",
	} {
		got := identity.Safe(text)
		if back, err := url.PathUnescape(got); got != want || err != nil || back != text {
			t.Errorf("%q is written %q and read %q (%v), want %q", text, got, back, err, want)
		}
		f := fields(t, i, access.Viewer{User: ident.UserID("u" + text), Name: text, Email: text, Groups: []string{text}}, "s")
		for line := range strings.SplitSeq(strings.TrimSuffix(f, "\r\n"), "\r\n") {
			if name, _, ok := strings.Cut(line, ": "); !ok || !strings.HasPrefix(name, "X-Adit-") || strings.ContainsAny(line, "\r\n\x00") {
				t.Errorf("%q makes the line %q", text, line)
			}
		}
	}
}

// A person in every group of a company does not break the app's limit of a header.
func TestGroupsAreBounded(t *testing.T) {
	now := time.Now()
	i, _ := made(t, &now)
	var groups []string
	for n := range 2000 {
		groups = append(groups, fmt.Sprintf("group-%d", n))
	}
	f := fields(t, i, access.Viewer{User: "alice", Groups: groups}, "s")
	if len(f) > 8<<10 || !strings.Contains(f, "X-Adit-Groups: group-0,group-1,") {
		t.Errorf("%d bytes: %.200s", len(f), f)
	}
}

func FuzzSafe(f *testing.F) {
	f.Add("Ä\r\n%")
	f.Fuzz(func(t *testing.T, s string) {
		got := identity.Safe(s)
		if back, err := url.PathUnescape(got); err != nil || back != s || strings.TrimSpace(got) != got || strings.ContainsFunc(got, func(c rune) bool { return c < ' ' || c > '~' }) {
			t.Errorf("%q became %q and %q: %v", s, got, back, err)
		}
	})
}
