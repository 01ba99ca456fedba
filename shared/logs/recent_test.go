package logs_test

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/adit-tunnel/adit/shared/logs"
)

func TestRecentKeepsTheNewestLinesWithoutSecrets(t *testing.T) {
	recent := logs.NewRecent(2000)
	var whole bytes.Buffer
	log, _, err := logs.New(&whole, logs.Options{Format: logs.FormatJSON, Recent: recent})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		log.Info("line", "number", i, "header", "Bearer 0123456789abcdef0123456789abcdef")
	}
	var kept bytes.Buffer
	if _, err := recent.WriteTo(&kept); err != nil {
		t.Fatal(err)
	}
	if kept.Len() > 2000 || !strings.HasSuffix(whole.String(), kept.String()) || !strings.Contains(kept.String(), fmt.Sprintf(`"number":%d`, 99)) {
		t.Errorf("the newest whole lines are kept, %d bytes: %s", kept.Len(), kept.String())
	}
	if strings.Contains(kept.String(), "0123456789abcdef") {
		t.Error("secrets are cut before")
	}
	long := logs.NewRecent(10)
	if _, err := io.WriteString(long, strings.Repeat("x", 100)); err != nil {
		t.Fatal(err)
	}
	if n, _ := long.WriteTo(io.Discard); n != 0 {
		t.Errorf("a line longer than all that may be kept is not, but %d bytes are", n)
	}
}
