package splice_test

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/splice"
	"github.com/adit-tunnel/adit/shared/testkit"
)

var _ interface {
	splice.Conn
	Reset() error
	Done() <-chan struct{}
} = (*link.Stream)(nil)

// throughLink is what a tunnel is: user - [relay] - link - [agent] - app. It returns
// the two outer ends and a function that waits for both halves.
func throughLink(t *testing.T) (user, app *net.TCPConn, wait func()) {
	t.Helper()
	c, s := testkit.TCP(t)
	agent, err := link.NewClient(c, link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	relay, err := link.NewServer(s, link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	near, err := relay.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	far, err := agent.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	user, atRelay := testkit.TCP(t)
	app, atAgent := testkit.TCP(t)
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = splice.Both(t.Context(), atRelay, near, splice.Options{}) })
	wg.Go(func() { _, _ = splice.Both(t.Context(), far, atAgent, splice.Options{}) })
	t.Cleanup(func() {
		_ = agent.Close(errors.New("test over"))
		_ = relay.Close(errors.New("test over"))
	})
	return user, app, wg.Wait
}

// A user who leaves in the middle of a download ends the app's connection too.
func TestUserLeavesDuringDownload(t *testing.T) {
	user, app, wait := throughLink(t)
	failed := make(chan error, 1)
	go func() {
		for {
			if _, err := app.Write(make([]byte, 64<<10)); err != nil {
				failed <- err
				return
			}
		}
	}()
	if _, err := io.ReadFull(user, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	_ = user.Close()
	<-failed
	wait()
}

// An app that answers early and hangs up is heard out, although the upload fails.
func TestEarlyAnswerDuringUpload(t *testing.T) {
	user, app, wait := throughLink(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			if _, err := user.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	})
	if _, err := io.ReadFull(app, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(app, "413 too large"); err != nil {
		t.Fatal(err)
	}
	_ = app.CloseWrite()
	if b, err := io.ReadAll(user); err != nil || string(b) != "413 too large" {
		t.Errorf("the user got %q, %v; want the app's answer", b, err)
	}
	_ = app.Close()
	_ = user.Close()
	wg.Wait()
	wait()
}

// A half-close goes all the way, and so does what comes after it.
func TestHalfCloseThroughLink(t *testing.T) {
	user, app, wait := throughLink(t)
	_, _ = io.WriteString(user, "everything")
	_ = user.CloseWrite()
	if b, err := io.ReadAll(app); err != nil || string(b) != "everything" {
		t.Fatalf("the app got %q, %v", b, err)
	}
	_, _ = io.WriteString(app, "done")
	_ = app.Close()
	if b, err := io.ReadAll(user); err != nil || string(b) != "done" {
		t.Errorf("the user got %q, %v", b, err)
	}
	wait()
}
