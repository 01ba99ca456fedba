package api_test

import (
	"encoding/json"
	"maps"
	"slices"
	"testing"

	"github.com/adit-tunnel/adit/shared/api"
)

func TestLabelsTravelAsAMapping(t *testing.T) {
	for _, c := range []struct {
		labels api.Labels
		sent   map[string]string
		list   api.Labels // nil: the labels
	}{
		{labels: api.Labels{}, sent: map[string]string{}},
		{labels: api.Labels{"a100", "pool=render"}, sent: map[string]string{"a100": "", "pool": "render"}},
		{labels: api.Labels{"pool=b", "pool=a", "pool"}, sent: map[string]string{"pool": "", "pool=a": "", "pool=b": ""}, list: api.Labels{"pool", "pool=a", "pool=b"}},
		{labels: api.Labels{"pool=b", "pool=a", "pool=a"}, sent: map[string]string{"pool": "a", "pool=b": ""}, list: api.Labels{"pool=a", "pool=b"}},
		{labels: api.Labels{"eq=a=b"}, sent: map[string]string{"eq": "a=b"}},
		{labels: api.Labels{"zone="}, sent: map[string]string{"zone": ""}, list: api.Labels{"zone"}},
	} {
		sent := c.labels.Mapping()
		if !maps.Equal(sent, c.sent) {
			t.Errorf("%q should travel as %q, not %q", c.labels, c.sent, sent)
		}
		want := c.list
		if want == nil {
			want = c.labels
		}
		if got := api.LabelsOf(sent); !slices.Equal(got, want) {
			t.Errorf("%q arrived as %q, want %q", c.labels, got, want)
		}
	}
	if got := api.LabelsOf(map[string]string{"rack": "7", "k=v": "", "k": "v"}); !slices.Equal(got, api.Labels{"k=v", "rack=7"}) {
		t.Errorf("got %q", got)
	}
}

func TestLabelsAreReadFromEitherRelease(t *testing.T) {
	for doc, want := range map[string]api.Labels{
		`{"agent_labels":["a100","pool=render"]}`:         {"a100", "pool=render"},
		`{"agent_labels":{"zone":"a","rack":"7","b":""}}`: {"b", "rack=7", "zone=a"},
		`{"agent_labels":null}`:                           nil,
		`{}`:                                              nil,
	} {
		var a api.Agent
		if err := json.Unmarshal([]byte(doc), &a); err != nil || !slices.Equal(a.AgentLabels, want) {
			t.Errorf("%s: got %q, %v", doc, a.AgentLabels, err)
		}
	}
	if err := json.Unmarshal([]byte(`{"agent_labels":7}`), new(api.Agent)); err == nil {
		t.Error("a number is no label")
	}
}

func FuzzLabels(f *testing.F) {
	f.Add("a100", "pool=a", "pool=b")
	f.Add("pool", "pool=a", "pool=a")
	f.Add("a=", "a", "=b")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		once := api.LabelsOf(api.Labels{a, b, c}.Mapping())
		if again := api.LabelsOf(once.Mapping()); !slices.Equal(again, once) {
			t.Errorf("%q became %q", once, again)
		}
	})
}
