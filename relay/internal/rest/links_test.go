package rest_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/namedlinks"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// links keeps them in memory; the rule itself is tested in namedlinks.
type links struct {
	mu   sync.Mutex
	list []store.LinkRecord
}

func (l *links) Create(_ context.Context, by string, t store.TunnelRecord, s namedlinks.Spec) (store.LinkRecord, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := store.LinkRecord{ID: ident.NewLinkID(), Session: t.Session, Name: s.Name, MaxUses: s.MaxUses, CreatedBy: by, User: s.User, CreatedAt: time.Now(), Access: s.Access}
	if s.ExpiresIn > 0 {
		r.ExpiresAt = r.CreatedAt.Add(s.ExpiresIn)
	}
	l.list = append(l.list, r)
	return r, nil
}

func (l *links) List(id ident.SessionID) (out []namedlinks.Listed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.list {
		if r.Session == id {
			out = append(out, namedlinks.Listed{LinkRecord: r, ViewersNow: 2})
		}
	}
	return out
}

func (l *links) Revoke(_ context.Context, _ string, session ident.SessionID, id ident.LinkID) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, r := range l.list {
		if r.Session == session && r.ID == id {
			l.list = append(l.list[:i], l.list[i+1:]...)
			return nil
		}
	}
	return api.NewProblem(api.CodeLinkNotFound, "there is no such link")
}

func (l *links) SetAccess(_ context.Context, _ string, session ident.SessionID, id ident.LinkID, change func(*store.AccessRule) (*store.AccessRule, error)) (namedlinks.Listed, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, r := range l.list {
		if r.Session == session && r.ID == id {
			made, err := change(r.Access)
			if err == nil {
				l.list[i].Access = made
			} else if !errors.Is(err, store.ErrUnchanged) {
				return namedlinks.Listed{}, err
			}
			return namedlinks.Listed{LinkRecord: l.list[i]}, nil
		}
	}
	return namedlinks.Listed{}, api.NotFound(api.CodeLinkNotFound)
}

func TestNamedLinks(t *testing.T) {
	w := newWorld(t)
	open := into[api.Tunnel](t, w.do("POST", "/agents/gpu-1/tunnel", "user", ""), 201)
	base := "/tunnels/" + string(open.SessionID) + "/links"

	made := into[api.NamedLink](t, w.do("POST", base, "integration", `{"name":"for Ann","expires_in":"1h","max_uses":3}`), 201)
	if made.Name != "for Ann" || made.MaxUses != 3 || made.Uses != 0 || made.CreatedBy != "sk:ci" || !strings.Contains(made.URL, string(made.LinkID)) {
		t.Errorf("the link is not as it was asked for: %+v", made)
	}
	if in := time.Until(made.ExpiresAt); in < 59*time.Minute || in > time.Hour {
		t.Errorf("the link ends in %s, asked for an hour", in)
	}
	w.store.SetUser(store.UserRecord{ID: "alice", Name: "Alice Cooper"})
	hers := into[api.NamedLink](t, w.do("POST", base, "device", `{"name":"for Bob"}`), 201)
	if made.CreatedByName != "" || hers.CreatedBy != "dk:alice/laptop" || hers.CreatedByName != "Alice Cooper (laptop)" {
		t.Errorf("people read who made a link: %q, %q", made.CreatedByName, hers.CreatedByName)
	}
	w.want(w.do("DELETE", base+"/"+string(hers.LinkID), "device", ""), "No Content")
	// Its own end or the tunnel's, whichever comes first.
	long := into[api.NamedLink](t, w.do("POST", base, open.AdminToken, `{"name":"long","expires_in":"6d"}`), 201)
	if !long.ExpiresAt.Equal(open.ExpiresAt) || long.MaxUses != 0 {
		t.Errorf("a link cannot outlive its tunnel: it ends %s, the tunnel %s", long.ExpiresAt, open.ExpiresAt)
	}
	if got := into[api.NamedLinkList](t, w.do("GET", base, "device", ""), 200).Links; len(got) != 2 || got[0].LinkID != made.LinkID || got[0].Viewers != 2 {
		t.Errorf("the list: %+v", got)
	}

	for body, want := range map[string]string{
		``: "Bad Request invalid_body", `{}`: "Unprocessable Entity out_of_range", `{"name":"  "}`: "Unprocessable Entity out_of_range",
		`{"name":"` + strings.Repeat("x", 65) + `"}`: "Unprocessable Entity out_of_range", `{"name":"a\u0007"}`: "Unprocessable Entity out_of_range",
		`{"name":"x","max_uses":0}`: "Unprocessable Entity out_of_range", `{"name":"x","max_uses":1001}`: "Unprocessable Entity out_of_range",
		`{"name":"x","expires_in":"1ms"}`: "Unprocessable Entity out_of_range", `{"name":"x","uses":1}`: "Bad Request unknown_field",
		`{"name":7}`: "Bad Request invalid_field",
	} {
		w.want(w.do("POST", base, "user", body), want)
	}
	for _, secret := range []string{"stranger"} {
		for _, method := range []string{"POST", "GET"} {
			w.want(w.do(method, base, secret, ""), "Not Found tunnel_not_found")
		}
		w.want(w.do("DELETE", base+"/"+string(made.LinkID), secret, ""), "Not Found tunnel_not_found")
	}
	w.want(w.do("GET", base, "agent", ""), "Forbidden forbidden")

	w.want(w.do("DELETE", base+"/"+string(made.LinkID), open.AdminToken, ""), "No Content")
	w.want(w.do("DELETE", base+"/"+string(made.LinkID), "user", ""), "Not Found link_not_found")
	w.want(w.do("DELETE", base+"/nonsense", "user", ""), "Not Found link_not_found")
}
