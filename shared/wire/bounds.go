package wire

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds of what an agent says. What is longer is cut, not refused: an agent with a
// long label goes on working.
const (
	MaxText  = 256  // bytes of one text
	MaxItems = 64   // of one list
	MaxTasks = 1024 // task leases of one agent at once

	// A relay's record of an agent is made of its introduction and its facts, and has
	// 16 KiB with what the relay adds to them.
	maxIntroduction = 5 << 10
	maxFacts        = 10 << 10
)

// Bound brings everything that an agent's message says within the bounds: each text,
// each list, and each part as a whole. A relay calls it before it keeps or passes on
// any of it. It walks over the message's fields, so a field that is added later is
// bounded, too.
func (m *Message) Bound() {
	if h := m.Hello; h != nil {
		h.TaskCapacity = min(h.TaskCapacity, MaxTasks)
		facts, state := h.Facts, h.State
		h.Facts, h.State = Facts{}, State{}
		fit(h, maxIntroduction)
		fit(&facts, maxFacts)
		fit(&state, maxIntroduction)
		h.Facts, h.State = facts, state
	}
	if m.Facts != nil {
		fit(m.Facts, maxFacts)
	}
	if m.State != nil {
		fit(m.State, maxIntroduction)
	}
	if m.Probed != nil {
		fit(m.Probed, maxIntroduction)
	}
	if m.Goodbye != nil {
		fit(m.Goodbye, maxIntroduction)
	}
}

// fit bounds a part, and halves the bounds of its texts and lists until all of it is
// small enough.
func fit[T any](part *T, most int) {
	for divisor := 1; ; divisor *= 2 {
		bound(reflect.ValueOf(part).Elem(), MaxText/divisor, MaxItems/divisor)
		if b, err := json.Marshal(part); err == nil && len(b) <= most || divisor == MaxItems {
			return
		}
	}
}

// bound cuts the texts and lists within v.
func bound(v reflect.Value, text, items int) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(cut(v.String(), text))
	case reflect.Pointer:
		if !v.IsNil() {
			bound(v.Elem(), text, items)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				bound(v.Field(i), text, items)
			}
		}
	case reflect.Slice:
		if v.Len() > items {
			v.Set(v.Slice3(0, items, items))
		}
		for i := range v.Len() {
			bound(v.Index(i), text, items)
		}
	case reflect.Map:
		if labels, ok := reflect.TypeAssert[map[string]string](v); ok && labels != nil {
			v.Set(reflect.ValueOf(boundMap(labels, text, items)))
		}
	}
}

// boundMap keeps the first entries by name.
func boundMap(in map[string]string, text, items int) map[string]string {
	out := make(map[string]string, min(len(in), items))
	for _, k := range slices.Sorted(maps.Keys(in)) {
		if len(out) == items {
			break
		}
		out[cut(k, text)] = cut(in[k], text)
	}
	return out
}

// Text is a text as it may be kept and shown: at most MaxText bytes, with a space in
// the place of what would command a terminal or turn a line around.
func Text(s string) string { return cut(s, MaxText) }

func cut(s string, most int) string {
	if len(s) > most {
		for most > 0 && !utf8.RuneStart(s[most]) {
			most--
		}
		s = s[:most]
	}
	return strings.Map(func(r rune) rune {
		if unicode.In(r, unicode.Cc, unicode.Zl, unicode.Zp, unicode.Bidi_Control) {
			return ' '
		}
		return r
	}, s)
}
