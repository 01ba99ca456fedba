package printable_test

import (
	"bytes"
	"encoding/json"
	"testing"
	"unicode"

	"github.com/adit-tunnel/adit/shared/printable"
)

// hostile texts: a window's title, CSI in its one-byte form, an override of direction,
// a tag beyond the basic plane, a delete, what is no UTF-8.
const (
	title    = "gpu\x1b]0;owned\a"
	csi      = "gpu\u009b2J"
	override = "gpu\u202eexe.txt"
	isolate  = "\u2066a\u2069"
	tag      = "a\U000e0041b"
	del      = "a\x7fb"
	broken   = "a\xffb"
)

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"plain text, äöü 漢字 🙂": "plain text, äöü 漢字 🙂", "": "",
		title: "gpu?]0;owned?", csi: "gpu?2J", override: "gpu?exe.txt", isolate: "?a?", tag: "a?b", del: "a?b", broken: "a?b",
		"two\nlines\r": "two?lines?", "a\u2028b": "a?b",
	} {
		if got := printable.Text(in); got != want {
			t.Errorf("%q prints as %q, want %q", in, got, want)
		}
	}
	if got := printable.Lines("one\n" + title + "\n"); got != "one\ngpu?]0;owned?\n" {
		t.Errorf("lines print as %q", got)
	}
}

func TestDocumentsSayTheSame(t *testing.T) {
	in := map[string]string{"title": title, "csi": csi, "override": override, "isolate": isolate, "tag": tag, "del": del, "plain": "äöü 漢字 🙂 <b> \n\t"}
	var b bytes.Buffer
	e := printable.Encoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(in); err != nil {
		t.Fatal(err)
	}
	for _, r := range b.String() {
		if r != '\n' && (unicode.IsControl(r) || unicode.Is(unicode.Cf, r)) {
			t.Errorf("the document holds %U: %q", r, b.String())
		}
	}
	if !bytes.Contains(b.Bytes(), []byte("漢字 🙂 <b>")) {
		t.Errorf("what is harmless stays as it is: %s", b.String())
	}
	var out map[string]string
	if err := json.Unmarshal(b.Bytes(), &out); err != nil {
		t.Fatal(err)
	}
	for k, want := range in {
		if out[k] != want {
			t.Errorf("%s reads back as %q, want %q", k, out[k], want)
		}
	}
}
