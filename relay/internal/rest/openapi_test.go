package rest_test

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/adit-tunnel/adit/shared/api"
)

var quoted = regexp.MustCompile("`([a-z]+_[a-z_]+)`")

// TestDescriptionKnowsItsCodes holds the codes that the descriptions of refusals name
// against the table: they are written by hand.
func TestDescriptionKnowsItsCodes(t *testing.T) {
	var doc any
	if err := json.Unmarshal(newWorld(t).do("GET", "/openapi.json", "", "").body, &doc); err != nil {
		t.Fatal(err)
	}
	codes, named := api.RelayCodes(), 0
	var walk func(at string, v any, refusals bool)
	walk = func(at string, v any, refusals bool) {
		m, ok := v.(map[string]any)
		if !ok {
			return
		}
		if text, ok := m["description"].(string); ok && refusals {
			for _, q := range quoted.FindAllStringSubmatch(text, -1) {
				if named++; q[1] != "retry_after" && !slices.Contains(codes, api.Code(q[1])) {
					t.Errorf("%s names %s, which is no code", at, q[1])
				}
			}
		}
		for name, inner := range m {
			walk(at+"/"+name, inner, strings.HasSuffix(at, "/responses") && !strings.HasPrefix(name, "2"))
		}
	}
	walk("", doc, false)
	if named == 0 {
		t.Error("no description of a refusal was found")
	}
}
