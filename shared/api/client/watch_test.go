package client_test

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/api/client"
)

var errEnough = errors.New("enough")

func TestWatchResumesBehindTheLastEvent(t *testing.T) {
	var mu sync.Mutex
	var lastIDs []string
	srv := serve(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		n := len(lastIDs)
		lastIDs = append(lastIDs, r.Header.Get("Last-Event-ID"))
		mu.Unlock()
		w.Header().Set("Content-Type", "text/event-stream")
		if n == 0 {
			fmt.Fprint(w, ": hello\r\nretry: 10\n\n", "id: 41\nevent: snapshot\ndata: {\"kind\":\"snapshot\",\ndata: \"agents\":[{\"agent_id\":\"gpu-1\"}]}\n\n")
			fmt.Fprint(w, "id: 42\nevent: agent_gone\ndata: {\"agent_id\":\"gpu-1\"}\n\n", "id: 43\ndata: {\"half")
			return // the connection is lost within an event
		}
		fmt.Fprint(w, "id: 44\nevent: agent_changed\ndata: {\"kind\":\"agent_changed\",\"agent_id\":\"gpu-2\"}\n\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	var got []string
	var losses int
	err := newClient(t, srv.URL, nil).Watch(t.Context(), func(ev api.Event) error {
		got = append(got, ev.Kind+" "+string(ev.AgentID))
		if ev.Kind == api.EventAgentChanged {
			return errEnough
		}
		return nil
	}, func(error, time.Duration) { losses++ })
	if !errors.Is(err, errEnough) {
		t.Fatalf("the watch ended with %v, expected the caller's own error", err)
	}
	if want := []string{"snapshot ", "agent_gone gpu-1", "agent_changed gpu-2"}; !slices.Equal(got, want) {
		t.Errorf("events were %q, expected %q", got, want)
	}
	if !slices.Equal(lastIDs, []string{"", "42"}) || losses != 1 {
		t.Errorf("resumed behind %q after %d losses; expected behind 42 after one", lastIDs, losses)
	}
}

func TestWatchEndsWhereRepeatingIsOfNoUse(t *testing.T) {
	srv := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		api.NewProblem(api.CodeUnauthenticated, "no such credential").Write(w, "r")
	})
	err := newClient(t, srv.URL, nil).Watch(t.Context(), func(api.Event) error { return nil }, nil)
	var p *api.Problem
	if !errors.As(err, &p) || p.Status != 401 || !strings.HasPrefix(err.Error(), "watch agents: ") {
		t.Errorf("expected the refusal itself, got %v", err)
	}
}

// silentBody sends one event and then nothing, until its request ends.
type silentBody struct {
	*strings.Reader
	done <-chan struct{}
}

func (b silentBody) Read(p []byte) (int, error) {
	if b.Len() > 0 {
		return b.Reader.Read(p)
	}
	<-b.done
	return 0, errors.New("connection given up")
}

func (silentBody) Close() error { return nil }

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestWatchGivesUpASilentConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start, conns := time.Now(), 0
		c := newClient(t, "http://relay.example", func(cfg *client.Config) {
			cfg.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
				conns++
				body := silentBody{strings.NewReader("data: {\"kind\":\"snapshot\"}\n\n"), r.Context().Done()}
				return &http.Response{StatusCode: 200, Header: http.Header{}, Body: body, Request: r}, nil
			})
		})
		err := c.Watch(t.Context(), func(api.Event) error {
			if conns == 2 {
				return errEnough
			}
			return nil
		}, func(err error, _ time.Duration) {
			if !errors.Is(err, client.ErrSilent) {
				t.Errorf("the loss is reported as %v", err)
			}
		})
		if took := time.Since(start); !errors.Is(err, errEnough) || took < 45*time.Second || took > 47*time.Second {
			t.Errorf("reconnected after %v (%v); expected 45 s of silence", took, err)
		}
	})
}
