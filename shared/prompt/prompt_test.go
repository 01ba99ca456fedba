package prompt_test

import (
	"bufio"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/term"

	"github.com/adit-tunnel/adit/shared/prompt"
)

// Whoever answers as soon as the question is there sees nothing of the answer, and what
// they type behind it is not lost.
func TestTheAnswerIsNotShown(t *testing.T) {
	for name, c := range map[string]struct{ typed, want string }{
		"a line":     {"hunter2\r", "hunter2"},
		"mended":     {"hunterx\x7f2\r", "hunter2"},
		"given up":   {"hun\x03", ""},
		"no answer":  {"\x04", ""},
		"typed more": {"hunter2\rls", "hunter2"},
	} {
		t.Run(name, func(t *testing.T) {
			person, tty, err := pty.Open()
			if err != nil {
				t.Fatal(err)
			}
			defer person.Close()
			type answer struct {
				line string
				err  error
			}
			got := make(chan answer, 1)
			go func() {
				line, err := prompt.Secret(tty, tty, "token: ")
				got <- answer{line, err}
			}()
			screen := bufio.NewReader(person)
			if _, err := io.ReadFull(screen, make([]byte, len("token: "))); err != nil {
				t.Fatal(err)
			}
			if _, err := person.WriteString(c.typed); err != nil {
				t.Fatal(err)
			}
			a := <-got
			if a.line != c.want || (c.want == "") != errors.Is(a.err, prompt.ErrInterrupted) {
				t.Errorf("got %q, %v; want %q", a.line, a.err, c.want)
			}
			if strings.HasSuffix(c.typed, "ls") {
				if _, err := term.MakeRaw(int(tty.Fd())); err != nil { // a line that has no end yet
					t.Fatal(err)
				}
				rest := make([]byte, 2)
				if _, err := io.ReadFull(tty, rest); err != nil || string(rest) != "ls" {
					t.Errorf("behind the answer %q is left (%v), want ls", rest, err)
				}
			}
			if _, err := tty.WriteString("END"); err != nil {
				t.Fatal(err)
			}
			shown, err := screen.ReadString('D')
			if err != nil || strings.Contains(shown, "h") {
				t.Errorf("the screen shows %q (%v)", shown, err)
			}
			_ = tty.Close()
		})
	}
}
