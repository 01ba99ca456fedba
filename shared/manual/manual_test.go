package manual_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/shared/manual"
)

func TestEachCommandHasAPage(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	pages := func() map[string]string {
		run := func(*cobra.Command, []string) {}
		root := &cobra.Command{Use: "prog", Short: "does things", Run: run}
		sub := &cobra.Command{Use: "sub", Short: "does one thing", Example: "  prog sub --loud", Run: run}
		host, err := os.Hostname()
		if err != nil {
			t.Fatal(err)
		}
		sub.Flags().String("name", host, "this machine's name")
		sub.Flags().Bool("loud", false, "say it aloud")
		root.AddCommand(sub, manual.Command("8"))
		dir := t.TempDir()
		root.SetArgs([]string{"man", dir})
		if err := root.ExecuteContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]string{}
		for _, e := range entries {
			text, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			out[e.Name()] = string(text)
		}
		return out
	}
	first, second := pages(), pages()
	if first["prog.8"] == "" || first["prog-man.8"] != "" {
		t.Errorf("the program has a page, the command that writes pages has none")
	}
	if page := first["prog-sub.8"]; !strings.Contains(page, `\-\-loud`) && !strings.Contains(page, "--loud") || !strings.Contains(page, "prog sub --loud") {
		t.Errorf("the page has flags and examples:\n%s", page)
	}
	if host, _ := os.Hostname(); strings.Contains(first["prog-sub.8"], `"`+host+`"`) {
		t.Errorf("the page does not name this machine:\n%s", first["prog-sub.8"])
	}
	for name, text := range first {
		if second[name] != text || !strings.Contains(text, "Nov 2023") {
			t.Errorf("%s is the same each time, with the date of the sources:\n%s", name, text)
		}
	}
}
