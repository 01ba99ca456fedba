package uplink_test

import (
	"testing"

	"github.com/adit-tunnel/adit/agent/internal/fakerelay"
	"github.com/adit-tunnel/adit/agent/internal/status"
	"github.com/adit-tunnel/adit/shared/wire"
)

// A change between the hello and the welcome is in no hello and comes before anybody
// listens for changes: a pause lost there would hold on the machine only.
func TestChangesDuringTheWelcomeAreSent(t *testing.T) {
	r := fakerelay.Start(t)
	boards := make(chan *status.Board, 1)
	r.Admit(func(wire.AgentHello) (*wire.Welcome, *wire.Goodbye) {
		b := <-boards
		if err := b.Declare("syncing", "models", nil); err != nil {
			t.Error(err)
		}
		b.Update(func(f *wire.Facts) { f.Unhealthy = "ComfyUI does not answer" })
		return nil, nil
	})
	boards <- start(t, nil, r.URL).board
	c := r.Next()
	c.Expect(wire.TypeState, func(m wire.Message) bool { return m.State.SyncPhase == "syncing" })
	c.Expect(wire.TypeFacts, func(m wire.Message) bool { return m.Facts.Unhealthy != "" })
}
