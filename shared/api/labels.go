package api

import (
	"encoding/json"
	"slices"
	"strings"
)

// Labels are an agent's labels, each a text such as "a100" or "pool=render".
//
// Between agent and relay, and in the store, they are a mapping: the last release knows
// nothing else. There pool=render is the entry pool with the value render, and a100 an
// entry without a value. Mapping and LabelsOf are each other's inverse.
type Labels []string

// LabelsOf is the list of the labels in a mapping, sorted, each once.
func LabelsOf(mapping map[string]string) Labels {
	out := make(Labels, 0, len(mapping))
	for name, value := range mapping {
		if value != "" {
			name += "=" + value
		}
		out = append(out, name)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Mapping is the labels as they travel. Of two with one name, as pool=a and pool=b, the
// second has its entry under all of its text.
func (l Labels) Mapping() map[string]string {
	out := make(map[string]string, len(l))
	for _, label := range slices.Sorted(slices.Values(l)) {
		name, value, _ := strings.Cut(label, "=")
		if has, taken := out[name]; taken && has != value {
			name, value = label, ""
		}
		out[name] = value
	}
	return out
}

// UnmarshalJSON reads a list, and the mapping that relays of the last release send.
func (l *Labels) UnmarshalJSON(b []byte) error {
	var list []string
	err := json.Unmarshal(b, &list)
	if err == nil {
		*l = list
		return nil
	}
	var mapping map[string]string
	if json.Unmarshal(b, &mapping) != nil {
		return err
	}
	*l = LabelsOf(mapping)
	return nil
}
