package wire_test

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/adit-tunnel/adit/shared/wire"
)

// What a record of an agent is made of stays within the 16 KiB, whatever it says.
func TestWhatAnAgentSaysIsBounded(t *testing.T) {
	percent := 1.0
	long := strings.Repeat("<\u0085\u202e\x1b]0;mine\x07é", 20000)
	labels, gpus := map[string]string{}, []wire.GPU{}
	for i := range 5000 {
		labels[fmt.Sprintf("%05d%s", i, long[:300])] = long[:300]
		gpus = append(gpus, wire.GPU{Name: long, Type: long, VRAMTotal: math.MaxUint64})
	}
	facts := wire.Facts{
		Tool: long, ToolVersion: long, ComfyUIVersion: long, PyTorchVersion: long, OSType: long, GPUs: gpus, Unhealthy: long,
		Link: &wire.LinkFacts{Congestion: long}, Hooks: &wire.HookFailure{Hook: long, Detail: long},
	}
	state := wire.State{SyncPhase: long, SyncDetail: long, SyncPercent: &percent}
	m := wire.Message{
		Hello: &wire.AgentHello{
			Agent: "gpu-1", Instance: long, Version: long, Platform: long, Labels: labels, TaskCapacity: math.MaxInt,
			Capabilities: strings.Split(strings.Repeat(long[:200]+"|", 3000), "|"), Facts: facts, State: state,
		},
		Facts: &facts, State: &state, Goodbye: &wire.Goodbye{Reason: wire.GoodbyeReason(long), Detail: long},
		Probed: &wire.Probed{App: long, HostHeader: long, Warnings: []string{long, long}, Detail: long},
	}
	m.Bound()
	texts(t, reflect.ValueOf(m))
	if n := size(t, m.Hello); n > 16<<10 {
		t.Errorf("a hello is kept in %d bytes, at most 16384 are right", n)
	}
	if n := size(t, m.Facts) + size(t, m.Hello) - size(t, m.Hello.Facts); n > 15<<10 {
		t.Errorf("a hello with later facts is kept in %d bytes, at most 15360 leave room for the relay's own", n)
	}
	if n := m.Hello.TaskCapacity; n != wire.MaxTasks {
		t.Errorf("the agent takes %d tasks at once, at most %d may be believed", n, wire.MaxTasks)
	}
	again := m
	again.Bound()
	if !reflect.DeepEqual(again, m) {
		t.Error("what is bounded already should stay as it is")
	}
}

// An agent that says no more than agents do notices nothing.
func TestPoliteAgentsAreNotCut(t *testing.T) {
	for _, m := range messages() {
		if m.Hello != nil {
			m.Hello.Labels = map[string]string{}
			for i := range wire.MaxItems {
				m.Hello.Labels[fmt.Sprintf("example.com/label-%d", i)] = "a value of 24 characters"
			}
		}
		if m.Facts != nil {
			for range wire.MaxItems - len(m.Facts.GPUs) {
				m.Facts.GPUs = append(m.Facts.GPUs, wire.GPU{Name: "NVIDIA H100 80GB HBM3", Type: "cuda", VRAMTotal: 80 << 30, VRAMFree: 79 << 30})
			}
			m.Facts.Unhealthy = "GET http://127.0.0.1:8188/ answered 502 – “überlastet”"
		}
		before, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		m.Bound()
		if after, err := json.Marshal(m); err != nil || string(after) != string(before) {
			t.Errorf("%s was changed (%v):\n%s\n%s", m.Type, err, before, after)
		}
	}
}

func TestTextIsCutBetweenCharacters(t *testing.T) {
	for in, want := range map[string]string{
		"fine: äöü 日本 🙂":               "fine: äöü 日本 🙂",
		"\x1b[2Jgone\r\nnext\u2028":    " [2Jgone  next ",
		"evil\u202etxt.exe":            "evil txt.exe",
		strings.Repeat("é", 200):       strings.Repeat("é", 128),
		"x" + strings.Repeat("é", 200): "x" + strings.Repeat("é", 127),
	} {
		if got := wire.Text(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func size(t testing.TB, v any) int {
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return len(b)
}

// texts checks all texts and lists within v.
func texts(t testing.TB, v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		if s := v.String(); len(s) > wire.MaxText || !utf8.ValidString(s) || strings.ContainsAny(s, "\x1b\x07\u0085\u202e\n") {
			t.Errorf("a text of %d bytes is kept as it came: %.40q", len(s), s)
		}
	case reflect.Pointer:
		if !v.IsNil() {
			texts(t, v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() && v.Type().Field(i).Name != "Type" {
				texts(t, v.Field(i))
			}
		}
	case reflect.Slice:
		if v.Len() > wire.MaxItems {
			t.Errorf("a list has %d entries", v.Len())
		}
		for i := range v.Len() {
			texts(t, v.Index(i))
		}
	case reflect.Map:
		if v.Len() > wire.MaxItems {
			t.Errorf("%d labels are kept", v.Len())
		}
		for it := v.MapRange(); it.Next(); {
			texts(t, it.Key())
			texts(t, it.Value())
		}
	}
}

func FuzzBound(f *testing.F) {
	for _, m := range messages() {
		line, err := json.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m wire.Message
		if json.Unmarshal(b, &m) != nil {
			return
		}
		m.Welcome, m.TunnelOpened, m.TunnelClosed, m.Probe = nil, nil, nil, nil // a relay's own
		m.Bound()
		texts(t, reflect.ValueOf(m))
		if m.Hello != nil && size(t, m.Hello) > 16<<10 {
			t.Errorf("a hello of %d bytes is kept in %d", len(b), size(t, m.Hello))
		}
	})
}
