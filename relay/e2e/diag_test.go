package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/adit-tunnel/adit/relay/e2e/world"
)

// unpack returns the files of a bundle.
func unpack(t *testing.T, bundle []byte) map[string]string {
	t.Helper()
	gz, err := gzip.NewReader(bytes.NewReader(bundle))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for tr := tar.NewReader(gz); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		files[filepath.Base(h.Name)] = string(text)
	}
}

// bundles makes one of each process, after all that the day did with secrets, and
// looks for every one of them in every file.
func (d *day) bundles(agents ...*world.Agent) {
	d.c.t.Helper()
	made := map[string]string{"relay": d.w.Run(nil, filepath.Join(d.w.Bin, "adit-relay"), "diag", "-", "--socket", filepath.Join(d.r.DataDir, "admin.sock"))}
	for _, a := range agents {
		made["agent "+a.ID] = d.w.Run(nil, filepath.Join(d.w.Bin, "adit-agent"), "diag", "-", "--socket", filepath.Join(a.StateDir, "agent.sock"))
	}
	for name, bundle := range made {
		files := unpack(d.c.t, []byte(bundle))
		for file, want := range map[string]string{
			"version.txt": "version ", "config.yaml": "metrics:", "status.json": "gpu-1", "metrics.txt": "adit_", "log.txt": `"msg":`,
			"goroutines.txt": "goroutine ", "heap.txt": "heap profile", "kernel.txt": "tcp_congestion_control",
		} {
			if name == "relay" && file == "status.json" {
				want = "\"store\""
			}
			if name == "agent gpu-2" && file == "status.json" {
				want = "gpu-2"
			}
			if !strings.Contains(files[file], want) {
				d.c.t.Errorf("%s of the %s's bundle has %q: %.300q", file, name, want, files[file])
			}
		}
		for file, text := range files {
			d.c.search("the "+name+"'s bundle, "+file, []byte(text))
		}
	}
}

// TestDiagOfWhatDoesNotRun: the programs are not there, and their configuration is
// wrong and full of secrets.
func TestDiagOfWhatDoesNotRun(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	const secret = "kq7rw2mzx4p9t6vbn3hs5jd8"
	relay := w.WriteFile("relay.yaml", "data_dir: "+w.Dir+"/none\nlisten: nowhere\nauth: {oidc: {issuer: 'https://user:"+secret+"@login.example.com/', audience: adit}}\n")
	agent := w.WriteFile("agent.yaml", "relay_url: https://gateway.example.com\nagent_id: gpu-1\nstate_dir: "+w.Dir+"/none\nlocal: {socket: "+w.Dir+"/none.sock}\nlinks: 77\n")
	for name, run := range map[string]struct {
		env  []string
		args []string
		want map[string]string
	}{
		"adit-relay": {nil, []string{"diag", w.Dir + "/relay.tar.gz", "--config", relay}, map[string]string{
			"config.yaml": "login.example.com", "config-faults.txt": "listen", "relay.txt": "no admin socket", "kernel.txt": "somaxconn",
		}},
		"adit-agent": {[]string{"ADIT_CREDENTIAL=ak-" + secret + secret}, []string{"diag", w.Dir + "/agent.tar.gz", "--config", agent, "--socket", w.Dir + "/none.sock"}, map[string]string{
			"config.yaml": "gateway.example.com", "config-faults.txt": "links", "agent.txt": "no agent answers", "kernel.txt": "somaxconn",
		}},
	} {
		if out := w.Run(run.env, filepath.Join(w.Bin, name), run.args...); strings.TrimSpace(out) != run.args[1] {
			t.Errorf("%s diag prints the file's name: %q", name, out)
		}
		files := unpack(t, []byte(read(t, run.args[1])))
		for file, want := range run.want {
			if !strings.Contains(files[file], want) {
				t.Errorf("%s of %s has %q: %.300q", file, name, want, files[file])
			}
		}
		for file, text := range files {
			if strings.Contains(text, secret) {
				t.Errorf("%s of %s shows the secret: %s", file, name, text)
			}
		}
	}
}
