// Package logs owns how Adit's programs log: a slog logger, JSON or text, that
// keeps secrets out of what it writes. It opens no file, keeps no state, and
// leaves rotation to whoever reads the stream.
package logs

import (
	"encoding/json"
	"fmt"
	"io"
	"log" //nolint:depguard // this is where it is taken over
	"log/slog"
	"os"
	"strings"

	"golang.org/x/term"
)

// Formats of a log.
const (
	FormatAuto = "auto" // text on a terminal, JSON elsewhere
	FormatJSON = "json"
	FormatText = "text"
)

// Options say how to log. The zero value is information and worse, format auto.
type Options struct {
	Level  string // debug, info (or empty), warn, error
	Format string // auto (or empty), json, text
	// Recent, if any, gets every line too.
	Recent *Recent
}

// New returns a logger that writes to w, and its level, which may be changed while
// it is used. Texts, errors and other values are redacted as Redact says, and
// attributes whose key names a secret are cut whole.
func New(w io.Writer, o Options) (*slog.Logger, *slog.LevelVar, error) {
	level := new(slog.LevelVar)
	if err := SetLevel(level, o.Level); err != nil {
		return nil, nil, err
	}
	format, err := format(w, o.Format)
	if err != nil {
		return nil, nil, err
	}
	if o.Recent != nil {
		w = io.MultiWriter(w, o.Recent)
	}
	h := &slog.HandlerOptions{Level: level}
	if format == FormatText {
		h.ReplaceAttr = func(_ []string, a slog.Attr) slog.Attr { return redactAttr(a, asText) }
		return slog.New(slog.NewTextHandler(w, h)), level, nil
	}
	h.ReplaceAttr = func(_ []string, a slog.Attr) slog.Attr { return redactAttr(a, asJSON) }
	return slog.New(slog.NewJSONHandler(w, h)), level, nil
}

// TakeOver has what libraries print by themselves, through package log, arrive as
// debug records of a logger. net/http does so with pieces of what a strange peer
// sent. It is for a program's start, once; restore puts back what was.
func TakeOver(l *slog.Logger) (restore func()) {
	w, flags := log.Writer(), log.Flags()
	log.SetFlags(0)
	log.SetOutput(slog.NewLogLogger(l.Handler(), slog.LevelDebug).Writer())
	return func() {
		log.SetFlags(flags)
		log.SetOutput(w)
	}
}

// SetLevel sets a level by its name; empty is info. It serves a reload too.
func SetLevel(v *slog.LevelVar, name string) error {
	switch strings.ToLower(name) {
	case "debug":
		v.Set(slog.LevelDebug)
	case "", "info":
		v.Set(slog.LevelInfo)
	case "warn", "warning":
		v.Set(slog.LevelWarn)
	case "error":
		v.Set(slog.LevelError)
	default:
		return fmt.Errorf("log level is debug, info, warn or error, not %q", name)
	}
	return nil
}

func format(w io.Writer, name string) (string, error) {
	switch strings.ToLower(name) {
	case FormatJSON:
		return FormatJSON, nil
	case FormatText:
		return FormatText, nil
	case "", FormatAuto:
		if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			return FormatText, nil
		}
		return FormatJSON, nil
	}
	return "", fmt.Errorf("log format is auto, json or text, not %q", name)
}

// secretKeys are attribute keys whose values are secrets, whatever they look like.
// Letter case and '-' for '_' do not matter.
var secretKeys = map[string]bool{
	"authorization": true, "proxy_authorization": true, "cookie": true, "set_cookie": true,
	"password": true, "passwd": true, "secret": true, "client_secret": true,
	"token": true, "access_token": true, "admin_token": true, "lease_token": true,
	"id_token": true, "refresh_token": true, "bearer": true, "api_key": true,
}

// redactAttr is what a handler calls for every attribute, the message included.
// render is how that handler would print a value of an unknown type.
func redactAttr(a slog.Attr, render func(any) string) slog.Attr {
	if isSecretKey(a.Key) {
		a.Value = slog.StringValue(mark)
		return a
	}
	switch a.Value.Kind() {
	case slog.KindString:
		if s := a.Value.String(); suspicious(s) {
			a.Value = slog.StringValue(Redact(s))
		}
	case slog.KindAny:
		switch v := a.Value.Any().(type) {
		case nil, *slog.Source, slog.Level:
		case error:
			// An error's text is all that either handler prints of it.
			a.Value = slog.StringValue(Redact(errorText(v)))
		case []byte:
			a.Value = slog.StringValue(Redact(string(v)))
		default:
			s := render(v)
			if r := Redact(s); r != s {
				a.Value = slog.StringValue(r)
			}
		}
	default: // numbers, times and the like hold no secret
	}
	return a
}

// errorText survives an error that is a nil pointer of its type.
func errorText(err error) (s string) {
	defer func() {
		if p := recover(); p != nil {
			s = fmt.Sprintf("%T (its text panics)", err)
		}
	}()
	return err.Error()
}

func asText(v any) string { return fmt.Sprintf("%+v", v) }

func asJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return asText(v)
	}
	return string(b)
}

func isSecretKey(key string) bool {
	if len(key) < 5 || len(key) > 19 {
		return false // shorter and longer than any secret key
	}
	var buf [19]byte
	n := copy(buf[:], key)
	for i, c := range buf[:n] {
		switch {
		case c == '-':
			buf[i] = '_'
		case 'A' <= c && c <= 'Z':
			buf[i] = c + 'a' - 'A'
		}
	}
	return secretKeys[string(buf[:n])]
}
