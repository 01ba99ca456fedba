package conf

import (
	"errors"
	"fmt"
)

// Fault is one thing wrong with a configuration.
type Fault struct {
	Source string // "relay.yaml:12", "ADIT_LISTEN", "--listen"; empty where only the key is known
	Key    string // the dotted key; empty where the source names it
	Text   string // what is wrong
}

// Error is "source: key: what is wrong".
func (f *Fault) Error() string {
	s := f.Text
	if f.Key != "" {
		s = f.Key + ": " + s
	}
	if f.Source != "" {
		s = f.Source + ": " + s
	}
	return s
}

// Faultf makes a fault of one key, for a Validate method.
func Faultf(key, format string, args ...any) error {
	return &Fault{Key: key, Text: fmt.Sprintf(format, args...)}
}

// Join makes one error of several, one line each, and flattens joined ones. It is
// nil when all are.
func Join(errs ...error) error {
	var flat []error
	for _, err := range errs {
		flat = append(flat, Faults(err)...)
	}
	return errors.Join(flat...)
}

// Faults takes a joined error apart again; nil has none.
func Faults(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error }) // only the outermost error is taken apart
	if !ok {
		return []error{err}
	}
	var flat []error
	for _, e := range joined.Unwrap() {
		flat = append(flat, Faults(e)...)
	}
	return flat
}
