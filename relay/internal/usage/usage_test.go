package usage_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/adit-tunnel/adit/relay/internal/usage"
	"github.com/adit-tunnel/adit/shared/ident"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func party(ip, agent string) usage.Party {
	return usage.Party{Remote: netip.MustParseAddr(ip), UserAgent: agent}
}

func begin(t *testing.T, m *usage.Meter, id ident.SessionID, p usage.Party, k usage.Kind) *usage.Use {
	t.Helper()
	u, err := m.Begin(t.Context(), id, p, k)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestViewersAndTotals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := usage.New(usage.Config{})
		id := ident.NewSessionID()
		a1 := begin(t, m, id, party("10.0.0.1", "ff"), usage.HTTP)
		a2 := begin(t, m, id, party("10.0.0.1", "ff"), usage.WebSocket)
		b := begin(t, m, id, party("10.0.0.1", "curl"), usage.TCP)
		a1.In(3)
		a2.Out(5)
		b.In(7)
		got := m.Totals(id)
		if got.Viewers != 2 || got.BytesIn != 10 || got.BytesOut != 5 {
			t.Errorf("totals %+v", got)
		}
		first := m.Viewers(id)
		a1.End()
		a1.End()
		a2.End()
		b.End()
		time.Sleep(2 * time.Minute)
		if v := m.Viewers(id); len(v) != 0 {
			t.Errorf("viewers two minutes later: %+v", v)
		}
		begin(t, m, id, party("10.0.0.1", "ff"), usage.HTTP).End()
		again := m.Viewers(id)
		if len(again) != 1 || again[0].ViewerID != first[0].ViewerID && again[0].ViewerID != first[1].ViewerID {
			t.Errorf("who comes back within minutes has a new id: %+v, before %+v", again, first)
		}
		if got := m.Totals(id); got.BytesIn != 10 {
			t.Errorf("totals were lost: %+v", got)
		}
	})
}

// A party's first use is told, no other, until it was away for so long that it is
// somebody new; who was only sent away is no viewer.
func TestFirstViewsAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []usage.View
		m := usage.New(usage.Config{Viewed: func(v usage.View) { told = append(told, v) }})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		id := ident.NewSessionID()
		ff, curl := party("10.0.0.1", "ff"), party("10.0.0.1", "curl")
		for range 3 {
			begin(t, m, id, ff, usage.HTTP).End()
			begin(t, m, id, ff, usage.WebSocket).End()
			begin(t, m, id, curl, usage.TCP).End()
		}
		m.KickParty(id, party("10.0.0.2", "ff"))
		if _, err := m.Begin(ctx, id, party("10.0.0.2", "ff"), usage.HTTP); err == nil {
			t.Error("who was sent away gets in")
		}
		viewers := m.Viewers(id)
		if len(told) != 2 || told[0].Party != ff || told[0].Kind != usage.HTTP || told[0].Session != id || told[1].Party != curl || told[1].Kind.String() != "tcp" {
			t.Errorf("told of %+v, want one view of each of two parties", told)
		}
		if len(viewers) != 2 || viewers[0].ViewerID != told[0].Viewer && viewers[1].ViewerID != told[0].Viewer {
			t.Errorf("the viewer told of is in the list by its id: %+v, %+v", told, viewers)
		}
		time.Sleep(6 * time.Minute)
		begin(t, m, id, ff, usage.HTTP).End()
		if len(told) != 3 || told[2].Viewer == told[0].Viewer {
			t.Errorf("who comes back after long is told again, as a new viewer: %+v", told)
		}
		cancel()
		<-done
	})
}

func TestWhatCountsAsUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := usage.New(usage.Config{})
		for _, c := range []struct {
			name string
			kind usage.Kind
			do   func(*usage.Use)
			used bool
		}{
			{"bytes of a request", usage.HTTP, func(u *usage.Use) { u.In(1) }, true},
			{"bytes of TCP", usage.TCP, func(u *usage.Use) { u.Out(1) }, true},
			{"a ping's bytes", usage.WebSocket, func(u *usage.Use) { u.In(6) }, false},
			{"a data frame", usage.WebSocket, func(u *usage.Use) { u.Frame(true) }, true},
			{"an idle TCP connection", usage.TCP, func(*usage.Use) {}, false},
		} {
			id := ident.NewSessionID()
			u := begin(t, m, id, party("::1", c.name), c.kind)
			u.Out(1)
			at := m.Totals(id).LastUsed
			time.Sleep(time.Minute)
			if c.kind == usage.HTTP {
				at = m.Totals(id).LastUsed
				time.Sleep(time.Minute)
			}
			c.do(u)
			if used := m.Totals(id).LastUsed.After(at); used != c.used {
				t.Errorf("%s is use: %v, want %v", c.name, used, c.used)
			}
			u.End()
		}
		id := ident.NewSessionID()
		u := begin(t, m, id, party("::1", "waiting"), usage.HTTP)
		time.Sleep(10 * time.Minute)
		if since := time.Since(m.Totals(id).LastUsed); since != 0 {
			t.Errorf("who waits for an answer for 10 minutes counts as idle since %v", since)
		}
		u.End()
	})
}

func TestKickAndBlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := usage.New(usage.Config{})
		id := ident.NewSessionID()
		bad, good := party("10.0.0.1", "bad"), party("10.0.0.2", "good")
		u1, u2, other := begin(t, m, id, bad, usage.TCP), begin(t, m, id, bad, usage.HTTP), begin(t, m, id, good, usage.HTTP)
		var viewer ident.ViewerID
		for _, v := range m.Viewers(id) {
			if v.UserAgent == "bad" {
				viewer = v.ViewerID
			}
		}
		if !m.Kick(id, viewer) || m.Kick(id, "0000000000000000") || m.Kick("none", viewer) {
			t.Error("kick says wrongly whether there was such a viewer")
		}
		for _, u := range []*usage.Use{u1, u2} {
			if cause := context.Cause(u.Context()); !errors.Is(cause, usage.ErrKicked) {
				t.Errorf("the kicked use ended with %v", cause)
			}
			u.End()
		}
		if other.Context().Err() != nil {
			t.Error("another viewer was cut too")
		}
		other.End()
		time.Sleep(9 * time.Minute)
		if _, err := m.Begin(t.Context(), id, bad, usage.HTTP); !errors.Is(err, usage.ErrKicked) {
			t.Errorf("after 9 minutes: %v", err)
		}
		time.Sleep(2 * time.Minute)
		begin(t, m, id, bad, usage.HTTP).End()
	})
}

// A user agent is what a viewer says of itself: it is no way around a kick, and
// neither is another address of the same IPv6 network. A named link of one's own is
// another way in.
func TestAKickedViewerStaysOutWhateverItSaysOfItself(t *testing.T) {
	m := usage.New(usage.Config{})
	id, other := ident.NewSessionID(), ident.NewSessionID()
	with := func(addr, agent string, link ident.LinkID) usage.Party {
		p := party(addr, agent)
		p.Link = link
		return p
	}
	for _, c := range []struct {
		kicked  usage.Party
		out, in []usage.Party
	}{
		{with("10.0.0.1", "a", ""), []usage.Party{with("10.0.0.1", "a", ""), with("10.0.0.1", "b", ""), with("10.0.0.1", "", ""), with("::ffff:10.0.0.1", "a", "")},
			[]usage.Party{with("10.0.0.2", "a", ""), with("10.0.0.1", "a", "mine")}},
		{with("2001:db8::1", "a", ""), []usage.Party{with("2001:db8::2", "a", ""), with("2001:db8::ffff", "c", "")}, []usage.Party{with("2001:db8:0:1::1", "a", "")}},
		{with("10.0.0.3", "a", "shared"), []usage.Party{with("10.0.0.3", "z", "shared")}, []usage.Party{with("10.0.0.4", "a", "shared"), with("10.0.0.3", "a", "mine")}},
	} {
		bad := begin(t, m, id, c.kicked, usage.TCP)
		disguised := begin(t, m, id, c.out[len(c.out)-1], usage.TCP) // there before the kick
		spared := begin(t, m, id, c.in[0], usage.TCP)
		var viewer ident.ViewerID
		for _, v := range m.Viewers(id) {
			if v.RemoteAddr == c.kicked.Remote.String() && v.UserAgent == c.kicked.UserAgent && v.LinkID == c.kicked.Link {
				viewer = v.ViewerID
			}
		}
		if !m.Kick(id, viewer) {
			t.Fatalf("%v is no viewer", c.kicked)
		}
		for _, u := range []*usage.Use{bad, disguised} {
			if !errors.Is(context.Cause(u.Context()), usage.ErrKicked) {
				t.Errorf("%v was kicked, and of its place something goes on", c.kicked)
			}
			u.End()
		}
		if spared.Context().Err() != nil {
			t.Errorf("%v was kicked, and %v cut", c.kicked, c.in[0])
		}
		spared.End()
		for _, p := range c.out {
			if _, err := m.Begin(t.Context(), id, p, usage.HTTP); !errors.Is(err, usage.ErrKicked) {
				t.Errorf("%v was kicked and comes back as %v: %v", c.kicked, p, err)
			}
			begin(t, m, other, p, usage.HTTP).End()
		}
		for _, p := range c.in {
			begin(t, m, id, p, usage.HTTP).End()
		}
	}
}

func TestCutEndsAllAndRefusesLaterOnes(t *testing.T) {
	m := usage.New(usage.Config{})
	id, cause := ident.NewSessionID(), errors.New("closed by alice")
	a, b := begin(t, m, id, party("::1", ""), usage.HTTP), begin(t, m, id, party("::2", ""), usage.TCP)
	if n := m.Cut(id, cause); n != 2 {
		t.Errorf("cut %d", n)
	}
	for _, u := range []*usage.Use{a, b} {
		if !errors.Is(context.Cause(u.Context()), cause) {
			t.Errorf("cause %v", context.Cause(u.Context()))
		}
		u.End()
	}
	if _, err := m.Begin(t.Context(), id, party("::1", ""), usage.HTTP); !errors.Is(err, cause) {
		t.Errorf("a use that comes late: %v", err)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	m := usage.New(usage.Config{})
	id := ident.NewSessionID()
	for i := range 2000 {
		u := begin(t, m, id, usage.Party{Remote: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), UserAgent: strings.Repeat("x", 5000)}, usage.HTTP)
		u.End()
	}
	if n := len(m.Viewers(id)); n > 512 {
		t.Errorf("%d viewers are remembered", n)
	}
	if ua := m.Viewers(id)[0].UserAgent; len(ua) > 256 {
		t.Errorf("%d bytes of a user agent are kept", len(ua))
	}
}

func TestConcurrentUse(t *testing.T) {
	m := usage.New(usage.Config{})
	id := ident.NewSessionID()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 200 {
				u, err := m.Begin(t.Context(), id, party("::1", "x"), usage.HTTP)
				if err != nil {
					return
				}
				u.In(1)
				u.Out(2)
				m.Viewers(id)
				u.End()
			}
		})
	}
	all.Wait()
	if got := m.Totals(id); got.BytesIn != 1600 || got.BytesOut != 3200 || m.Viewers(id)[0].Connections != 0 {
		t.Errorf("totals %+v", got)
	}
}

func TestMetricNames(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := usage.New(usage.Config{Registerer: reg})
	begin(t, m, "x", party("::1", ""), usage.HTTP).End()
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}

func BenchmarkUse(b *testing.B) {
	m := usage.New(usage.Config{})
	id := ident.NewSessionID()
	p := party("::1", "x")
	b.ReportAllocs()
	for b.Loop() {
		u, _ := m.Begin(b.Context(), id, p, usage.HTTP)
		u.In(100)
		u.Out(100)
		u.End()
	}
}

// A person who is known is a viewer of their own wherever they sit, keeps their viewer
// when their name changes, and is sent away wherever they come from, and nobody else is.
func TestPersonsAreViewersOfTheirOwn(t *testing.T) {
	var told []usage.View
	m := usage.New(usage.Config{Viewed: func(v usage.View) { told = append(told, v) }})
	id := ident.NewSessionID()
	as := func(addr, user, name string, link ident.LinkID) usage.Party {
		p := party(addr, "ff")
		p.User, p.Name, p.Link = ident.UserID(user), name, link
		return p
	}
	office, phone, byLink := as("10.0.0.1", "u1", "Alice", ""), as("10.9.9.9", "u1", "Alice", ""), as("10.0.0.1", "u1", "Alice", "guests")
	var hers []*usage.Use
	for _, p := range []usage.Party{office, phone, byLink} {
		hers = append(hers, begin(t, m, id, p, usage.TCP))
	}
	others := []*usage.Use{
		begin(t, m, id, as("10.0.0.1", "u2", "Bob", ""), usage.TCP), begin(t, m, id, as("10.0.0.1", "", "Alice", ""), usage.TCP),
		begin(t, m, id, party("10.0.0.1", "ff"), usage.TCP),
	}
	begin(t, m, id, as("10.0.0.1", "u1", "Alicia", ""), usage.HTTP).End()
	var names []string
	var hersID, strangersID ident.ViewerID
	for _, v := range m.Viewers(id) {
		names = append(names, string(v.UserID)+"/"+v.UserName+"/"+v.RemoteAddr+"/"+string(v.LinkID))
		switch {
		case v.UserID == "u1" && v.LinkID == "":
			hersID = v.ViewerID
		case v.UserID == "":
			strangersID = v.ViewerID
		}
	}
	slices.Sort(names)
	if got, want := strings.Join(names, " "), "//10.0.0.1/ u1/Alice/10.0.0.1/guests u1/Alice/10.9.9.9/ u1/Alicia/10.0.0.1/ u2/Bob/10.0.0.1/"; got != want {
		t.Errorf("the viewers are %s, want %s", got, want)
	}
	if len(told) != 5 || told[0].Party != office || told[3].Party.Name != "Bob" {
		t.Errorf("told of %+v", told)
	}
	if p, ok := m.PartyOf(id, hersID); !ok || p.User != "u1" || p.Name == "" {
		t.Errorf("the party is %+v", p)
	}
	if !m.Kick(id, hersID) {
		t.Fatal("she is no viewer")
	}
	for n, u := range hers {
		if !errors.Is(context.Cause(u.Context()), usage.ErrKicked) {
			t.Errorf("she was sent away, and %d goes on", n)
		}
		u.End()
	}
	for n, u := range others {
		if u.Context().Err() != nil {
			t.Errorf("she was sent away, and with her %d, who is at the same address", n)
		}
	}
	if _, err := m.Begin(t.Context(), id, as("192.0.2.1", "u1", "Alice", "other"), usage.HTTP); !errors.Is(err, usage.ErrKicked) {
		t.Errorf("she comes back from elsewhere: %v", err)
	}
	if !m.Kick(id, strangersID) || others[0].Context().Err() != nil || others[2].Context().Err() == nil {
		t.Error("who is not known is sent away by address, without the known ones there")
	}
	if n := m.CutLink(id, "guests", nil); n != 0 {
		t.Errorf("%d uses of a link go on after their person was sent away", n)
	}
	again := begin(t, m, id, as("10.0.0.1", "u2", "Bob", "guests2"), usage.HTTP)
	if n, _ := m.LinkUse(id, "guests2"); n != 1 || m.CutLink(id, "guests2", nil) != 1 {
		t.Errorf("%d viewers of the link that a known person came by", n)
	}
	again.End()
	for _, u := range others {
		u.End()
	}
}
