package fakerelay_test

import (
	"context"
	"errors"
	"testing"

	"github.com/adit-tunnel/adit/agent/internal/fakerelay"
	"github.com/adit-tunnel/adit/shared/carrier"
	"github.com/adit-tunnel/adit/shared/link"
	"github.com/adit-tunnel/adit/shared/testkit"
)

func TestMain(m *testing.M) { testkit.LeakCheck(m) }

func TestRefusesStrangers(t *testing.T) {
	r := fakerelay.Start(t)
	_, err := link.Dial(t.Context(), carrier.DialOptions{URL: r.URL, Token: "ak-other"}, link.Config{})
	var refused *carrier.RefusedError
	if !errors.As(err, &refused) || refused.Status != 401 {
		t.Fatalf("a wrong credential gave %v, not 401", err)
	}
	l, err := link.Dial(context.Background(), carrier.DialOptions{URL: r.URL, Token: fakerelay.Token}, link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close(nil)
	if n := r.Attempts(); n != 2 {
		t.Fatalf("counted %d attempts, not 2", n)
	}
}
