package aditcli

import (
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/printable"
)

// clean makes text from elsewhere safe to print.
func clean(s string) string { return printable.Text(s) }

// Colours (ECMA-48, section 8.3.117).
const (
	plain  = ""
	bold   = "1"
	red    = "31"
	green  = "32"
	yellow = "33"
	blue   = "34"
	faint  = "2"
)

func (a *app) paint(colour, s string) string {
	if !a.colours || colour == plain {
		return s
	}
	return "\x1b[" + colour + "m" + s + "\x1b[0m"
}

func statusColour(s api.AgentStatus) string {
	switch s {
	case api.StatusIdle:
		return green
	case api.StatusTunnel:
		return blue
	case api.StatusBusy, api.StatusSyncing:
		return yellow
	case api.StatusUnhealthy:
		return red
	}
	return plain
}

// table lines up cells in columns. The zero value is empty.
type table struct{ rows [][]cell }

type cell struct{ text, colour string }

func (t *table) row(cells ...string) {
	r := make([]cell, len(cells))
	for i, c := range cells {
		r[i] = cell{text: clean(c)}
		if c == "" {
			r[i].text = "-"
		}
	}
	t.rows = append(t.rows, r)
}

// tint colours a cell of the last row.
func (t *table) tint(column int, colour string) { t.rows[len(t.rows)-1][column].colour = colour }

// render returns the table's text; the first row is its head when head is set.
func (t *table) render(a *app, head bool) string {
	var width []int
	for _, r := range t.rows {
		for i, c := range r {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], utf8.RuneCountInString(c.text))
		}
	}
	var b strings.Builder
	for n, r := range t.rows {
		for i, c := range r {
			colour := c.colour
			if n == 0 && head {
				colour = bold
			}
			b.WriteString(a.paint(colour, c.text))
			if i < len(r)-1 {
				b.WriteString(strings.Repeat(" ", width[i]-utf8.RuneCountInString(c.text)+2))
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// bytesText is a number of bytes for people.
func bytesText(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n)/1024, 0
	for f >= 1024 && unit < 3 {
		f, unit = f/1024, unit+1
	}
	return fmt.Sprintf("%.1f %s", f, []string{"KiB", "MiB", "GiB", "TiB"}[unit])
}

// span is a length of time for people, rounded, in its largest fitting unit.
func span(d time.Duration) string {
	const day = 24 * time.Hour
	for _, u := range []struct {
		unit  time.Duration
		below time.Duration
		name  string
	}{{time.Second, 2 * time.Minute, "s"}, {time.Minute, 2 * time.Hour, "m"}, {time.Hour, 2 * day, "h"}} {
		if r := d.Round(u.unit); r < u.below {
			return fmt.Sprintf("%d%s", max(0, r/u.unit), u.name)
		}
	}
	return fmt.Sprintf("%dd", d.Round(day)/day)
}

func ago(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	return span(now.Sub(t)) + " ago"
}

func until(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	if !t.After(now) {
		return "now"
	}
	return "in " + span(t.Sub(now))
}

// spin shows on a terminal that something takes longer than a second. The
// returned function ends it and waits until its line is gone; it may be called
// twice.
func (a *app) spin(what string) (stop func()) {
	if !a.errTTY {
		return func() {}
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		start := time.Now()
		t := time.NewTimer(time.Second)
		defer t.Stop()
		for n := 0; ; n++ {
			select {
			case <-done:
				if n > 0 {
					_, _ = fmt.Fprint(a.err, "\r\x1b[K")
				}
				return
			case <-t.C:
				_, _ = fmt.Fprintf(a.err, "\r\x1b[K%c %s (%s)", `|/-\`[n%4], what, span(time.Since(start)))
				t.Reset(200 * time.Millisecond)
			}
		}
	})
	return sync.OnceFunc(func() { close(done); wg.Wait() })
}
