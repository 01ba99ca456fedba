package apps_test

import (
	"slices"
	"testing"

	"github.com/adit-tunnel/adit/shared/apps"
)

func TestTable(t *testing.T) {
	ids := map[string]bool{}
	for _, a := range apps.Table {
		if a.ID == "" || a.Name == "" || ids[a.ID] {
			t.Errorf("each app has an id of its own and a name; got %+v", a)
		}
		if ids[a.ID] = true; a.Preset && len(a.Ports) == 0 {
			t.Errorf("%s is offered by the console and has no port", a.ID)
		}
	}
	if first := apps.Table[0]; !first.Preset || !slices.Equal(first.Ports, []uint16{apps.DefaultPort}) {
		t.Errorf("the console begins with the default port, %d; the table with %+v", apps.DefaultPort, first)
	}
}

func TestUsually(t *testing.T) {
	for port, want := range map[uint16]string{
		8188: " (usually ComfyUI)", 22: " (usually SSH)", 7860: " (usually Gradio or Stable Diffusion WebUI)", 8000: " (usually vLLM or uvicorn)", 1: "",
	} {
		if got := apps.Usually(port); got != want {
			t.Errorf("port %d: got %q, want %q", port, got, want)
		}
	}
}
