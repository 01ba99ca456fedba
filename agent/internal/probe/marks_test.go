package probe

import (
	"slices"
	"testing"

	"github.com/adit-tunnel/adit/shared/apps"
)

func TestMarksAreOfKnownApps(t *testing.T) {
	for _, m := range marks {
		if !slices.ContainsFunc(apps.Table, func(a apps.App) bool { return a.ID == m.app }) {
			t.Errorf("%q is no app of shared/apps: %+v", m.app, m)
		}
	}
}
