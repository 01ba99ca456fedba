package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Duration is a length of time. In JSON it is a Go duration string ("30m"), with
// "d" for days allowed as the only unit ("90d"), or a number of seconds; it is
// written as a string.
type Duration time.Duration

// ErrDuration is wrapped by every error about a text that is no duration.
var ErrDuration = errors.New("a duration is text like \"30m\" or \"90d\", or a number of seconds")

// D returns the standard library's type.
func (d Duration) D() time.Duration { return time.Duration(d) }

// String is Go's form: "30m0s".
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalJSON writes Go's form.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON reads either form.
func (d *Duration) UnmarshalJSON(b []byte) error {
	if bytes.Equal(b, []byte("null")) {
		return nil
	}
	if len(b) > 0 && b[0] == '"' {
		var s string
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
		v, err := ParseDuration(s)
		if err != nil {
			return err
		}
		*d = v
		return nil
	}
	secs, err := strconv.ParseFloat(string(b), 64)
	if err != nil {
		return ErrDuration
	}
	v, err := fromSeconds(secs)
	if err != nil {
		return err
	}
	*d = v
	return nil
}

// UnmarshalText reads the forms of ParseDuration, for configuration and flags.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := ParseDuration(string(b))
	if err != nil {
		return err
	}
	*d = v
	return nil
}

// ParseDuration reads "30m", "90d" or a number of seconds.
func ParseDuration(s string) (Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseFloat(days, 64); err == nil {
			return fromSeconds(n * 86400)
		}
	}
	if n, err := strconv.ParseFloat(s, 64); err == nil {
		return fromSeconds(n)
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("%w, not %q", ErrDuration, s)
	}
	return Duration(v), nil
}

func fromSeconds(s float64) (Duration, error) {
	if math.IsNaN(s) || math.Abs(s) > 1e9 {
		return 0, ErrDuration
	}
	return Duration(s * float64(time.Second)), nil
}
