package rest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"reflect"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/shared/api"
)

// maxBody bounds a request's body in bytes.
const maxBody = 64 << 10

// decode reads a JSON object into the fields of into, strictly: no field that is
// not there, none twice, nothing behind the object. An absent or empty body leaves
// into as it is and is refused when required.
func decode(w http.ResponseWriter, r *http.Request, into any, required bool) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return api.Problemf(api.CodeBodyTooLarge, "the body is longer than %d bytes", maxBody)
		}
		return api.NewProblem(api.CodeBodyIncomplete, "the body ended early or did not come in time").WithCause(err)
	}
	// All is read: what waits later must not be ended by the deadline.
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	if len(bytes.TrimSpace(body)) == 0 {
		if required {
			return badJSON("the body is empty; a JSON object is needed")
		}
		return nil
	}
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return api.NewProblem(api.CodeUnsupportedMediaType, "send the body as Content-Type: application/json")
	}
	return decodeObject(body, into)
}

func badJSON(format string, args ...any) error {
	return api.Problemf(api.CodeInvalidBody, format, args...)
}

// decodeObject goes through the object by itself, since encoding/json cannot name
// the field that is wrong in all cases, takes names in any letter case, and lets
// the last of two fields win.
func decodeObject(body []byte, into any) error {
	fields := fieldsOf(reflect.ValueOf(into).Elem())
	d := json.NewDecoder(bytes.NewReader(body))
	if t, err := d.Token(); err != nil {
		return badJSON("the body is no JSON: %s", syntax(err))
	} else if t != json.Delim('{') {
		return badJSON("the body must be a JSON object")
	}
	seen := map[string]bool{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return badJSON("the body is no JSON: %s", syntax(err))
		}
		name, _ := t.(string)
		field, known := fields[name]
		switch {
		case !known:
			return api.Problemf(api.CodeUnknownField, "%s: there is no such field", quote(name))
		case seen[name]:
			return badJSON("%s: the field is there twice", quote(name))
		}
		seen[name] = true
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return badJSON("%s: %s", quote(name), syntax(err))
		}
		if err := json.Unmarshal(raw, field.Addr().Interface()); err != nil {
			return api.Problemf(api.CodeInvalidField, "%s: %s", quote(name), expected(err, field.Type()))
		}
	}
	if _, err := d.Token(); err != nil {
		return badJSON("the body is no JSON: %s", syntax(err))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return badJSON("something follows the JSON object")
	}
	return nil
}

func fieldsOf(v reflect.Value) map[string]reflect.Value {
	out := make(map[string]reflect.Value, v.NumField())
	for i := range v.NumField() {
		if v.Type().Field(i).Anonymous {
			maps.Copy(out, fieldsOf(v.Field(i)))
			continue
		}
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		out[name] = v.Field(i)
	}
	return out
}

// quote shows a name from outside, cut to a length that fits.
func quote(name string) string {
	if len(name) > 64 {
		name = name[:64] + "…"
	}
	return fmt.Sprintf("%q", name)
}

func syntax(err error) string {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "it ends early"
	}
	if s, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Sprintf("%s (at byte %d)", s.Error(), s.Offset)
	}
	return "it is malformed"
}

// expected says what a field takes.
func expected(err error, t reflect.Type) string {
	if errors.Is(err, api.ErrDuration) {
		return err.Error()
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t == reflect.TypeFor[api.Duration]():
		return api.ErrDuration.Error()
	case t.Kind() == reflect.String:
		return "a string is needed"
	case t.Kind() == reflect.Bool:
		return "true or false is needed"
	case t.Kind() == reflect.Slice:
		return "a list of strings is needed"
	}
	return "an integer is needed"
}

// invalid is a value out of its range: well-formed, and refused.
func invalid(field, format string, args ...any) error {
	return api.Problemf(api.CodeOutOfRange, "%s: %s", field, fmt.Sprintf(format, args...))
}

// send writes an answer whole, so that its length is known.
func send(w http.ResponseWriter, status int, v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", fmt.Sprint(b.Len()))
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // the peer may be gone; there is nobody left to tell
	return nil
}

func sendNothing(w http.ResponseWriter) error {
	w.WriteHeader(http.StatusNoContent)
	return nil
}
