package diag_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/shared/diag"
	"github.com/adit-tunnel/adit/shared/logs"
)

func TestBundle(t *testing.T) {
	const secret = "0123456789abcdefghijklmnopqrstuvwxyz"
	reg := prometheus.NewRegistry()
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: "adit_test_total", Help: "A counter."})
	reg.MustRegister(c)
	recent := logs.NewRecent(1000)
	_, _ = io.WriteString(recent, "a line\n")
	var b bytes.Buffer
	err := diag.Write(&b, "adit-test", time.Unix(1, 0), []diag.File{
		diag.Text("config.yaml", "issuer: https://user:"+secret+"@login.example.com/\n"),
		diag.JSON("status.json", func() any { return map[string]string{"header": "Authorization: Bearer " + secret} }),
		{Name: "broken.txt", Write: func(io.Writer) error { return errors.New("it is out of order") }},
		diag.Build("v1"), diag.Kernel(), diag.Goroutines(), diag.Heap(), diag.Metrics(reg), diag.Log(recent),
	})
	if err != nil {
		t.Fatal(err)
	}
	gz, err := gzip.NewReader(&b)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for tr := tar.NewReader(gz); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		got[strings.TrimPrefix(h.Name, "adit-test/")] = string(text)
	}
	for name, want := range map[string]string{
		"config.yaml": "login.example.com", "status.json": "[redacted]", "broken.txt.error": "it is out of order", "version.txt": "version v1",
		"kernel.txt": "tcp_congestion_control", "goroutines.txt": "goroutine ", "heap.txt": "heap profile", "metrics.txt": "adit_test_total 0", "log.txt": "a line",
	} {
		if !strings.Contains(got[name], want) {
			t.Errorf("%s has %q: %.200q", name, want, got[name])
		}
		if strings.Contains(got[name], secret) {
			t.Errorf("the secret shows in %s", name)
		}
	}
}
