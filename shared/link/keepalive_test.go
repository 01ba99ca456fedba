package link_test

import (
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/adit-tunnel/adit/shared/link"
)

// Two ends that have nothing to say ask each other, but not each on its own account:
// that one asks is a sign of life, too.
func TestIdleLinkAsksOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c, s := net.Pipe()
		var measured atomic.Int32
		client, server := connPair(t, c, s, link.Config{Hooks: link.Hooks{Measured: func(time.Duration) { measured.Add(1) }}})
		time.Sleep(time.Hour)
		// One question and its answer in each 4 s, and each end measures by itself at times.
		if n := client.Stats().Frames + server.Stats().Frames; n < 2*3600/5 || n > 2*2*3600/6 {
			t.Errorf("an idle hour cost %d frames", n)
		}
		if n := measured.Load(); n < 3600/5 {
			t.Errorf("in an idle hour the round trip was measured %d times; want once with each question", n)
		}
		for _, l := range []*link.Link{client, server} {
			if l.RTT() == 0 {
				t.Error("an end never measured")
			}
			_ = l.Close(errTest)
		}
	})
}

// Ends that talk need not ask, but for a measurement at times.
func TestTalkingPeersDoNotAsk(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c, s := net.Pipe()
		client, server := connPair(t, c, s, link.Config{})
		near, far := streams(t, client, server)
		begin := client.Stats().Frames + server.Stats().Frames
		const said = 1200
		for range said {
			time.Sleep(3 * time.Second)
			echo(t, near, far)
			echo(t, far, near)
		}
		if extra := client.Stats().Frames + server.Stats().Frames - begin - 2*said; extra > 2*2*3600/20 {
			t.Errorf("%d messages both ways cost %d frames more", said, extra)
		}
		_ = client.Close(errTest)
		_ = server.Close(errTest)
	})
}

func echo(t *testing.T, from, to *link.Stream) {
	t.Helper()
	if _, err := from.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(to, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
}

// Who doubts its peer asks without waiting for the next question.
func TestPingAsksAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c, s := net.Pipe()
		client, server := connPair(t, c, s, link.Config{})
		synctest.Wait()
		time.Sleep(2 * time.Second)
		if n := client.Silence(); n != 2*time.Second {
			t.Errorf("after 2 s without a frame the peer has been silent for %s", n)
		}
		client.Ping()
		synctest.Wait()
		if n := client.Silence(); n != 0 {
			t.Errorf("an answer that just came is %s old", n)
		}
		_ = client.Close(errTest)
		_ = server.Close(errTest)
	})
}

// Whoever does not wait for streams is told of each, also of those that came before.
func TestOnIncoming(t *testing.T) {
	bubble(t, func(t *testing.T) {
		c, s := net.Pipe()
		client, server := connPair(t, c, s, link.Config{})
		open := func() {
			t.Helper()
			st, err := server.Open(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := st.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		open()
		var told atomic.Int32
		client.OnIncoming(func() { told.Add(1) })
		if told.Load() != 1 {
			t.Error("nothing said of what may have come before")
		}
		open()
		open()
		if n := told.Load(); n != 3 {
			t.Errorf("told %d times of two streams", n-1)
		}
		for range 3 {
			st, err := client.Accept(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(st, make([]byte, 5)); err != nil {
				t.Error(err)
			}
		}
		_ = client.Close(errTest)
		_ = server.Close(errTest)
	})
}
