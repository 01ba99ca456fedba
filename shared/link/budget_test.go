package link_test

import (
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/adit-tunnel/adit/shared/link"
)

// Readers that do not read cost no more than the budget, and the one that costs
// most goes first.
func TestBudgetGivesUpTheSlowestReader(t *testing.T) {
	budget := link.NewBudget(384 << 10)
	client, server := tcpPair(t, link.Config{Budget: budget, Window: 256 << 10})
	stuck, farStuck := streams(t, client, server)
	near, far := streams(t, client, server)
	alive, farAlive := streams(t, client, server)
	var wg sync.WaitGroup
	wg.Go(func() { // a window that nobody reads
		_, err := farStuck.Write(make([]byte, 8<<20))
		if !errors.Is(err, link.ErrReset) {
			t.Errorf("writing to a reader that was given up gives %v; want link.ErrReset", err)
		}
	})
	eventually(t, "one window is full", func() bool { return budget.Used() >= 256<<10 })
	wg.Go(func() { _, _ = far.Write(make([]byte, 200<<10)); _ = far.CloseWrite() })
	eventually(t, "the slowest reader was given up", func() bool {
		_, err := stuck.Write([]byte("x"))
		return errors.Is(err, link.ErrMemory)
	})
	if _, err := stuck.Read(make([]byte, 1)); !errors.Is(err, link.ErrMemory) {
		t.Errorf("reading the stream that was given up gives %v; want link.ErrMemory", err)
	}
	wg.Wait()
	if b, err := io.ReadAll(near); err != nil || len(b) != 200<<10 {
		t.Errorf("the other slow reader got %d bytes, %v", len(b), err)
	}
	mustWrite(t, farAlive, "fine")
	mustRead(t, alive, "fine")
	for _, s := range []*link.Stream{stuck, near, alive, far, farStuck, farAlive} {
		_ = s.Close()
	}
	eventually(t, "nothing is counted any more", func() bool { return budget.Used() == 0 })
}

func TestBudgetForgetsADeadLink(t *testing.T) {
	budget := link.NewBudget(64 << 20)
	client, server := tcpPair(t, link.Config{Budget: budget})
	_, far := streams(t, client, server)
	mustWrite(t, far, "unread")
	eventually(t, "unread data counts", func() bool { return budget.Used() == 6 })
	_ = server.Close(errTest)
	_ = client.Close(errTest)
	if n := budget.Used(); n != 0 {
		t.Errorf("%d bytes of dead links count", n)
	}
}
