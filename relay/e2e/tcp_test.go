package e2e

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/testkit"
)

// connect runs `adit connect URL -L 127.0.0.1:0`-like forwarding and returns the
// local port. The URL goes by the environment, as the README advises.
func connect(w *world.World, url string) int {
	w.T.Helper()
	port := w.FreePort()
	w.Start("adit connect", []string{"ADIT_TUNNEL_URL=" + url}, filepath.Join(w.Bin, "adit"), "connect", "-L", fmt.Sprintf("127.0.0.1:%d", port))
	w.WaitPort(port, 10*time.Second)
	return port
}

func TestSSHThroughATunnel(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	sshd, args := w.SSHD()
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": sshd, "tunnel_protocol": "tcp"})
	if !strings.HasPrefix(tun.TunnelURL, "ws://") {
		t.Errorf("a tcp tunnel's URL on an http relay is %s, want ws://…", tun.SessionID)
	}
	port := fmt.Sprint(connect(w, tun.TunnelURL))
	args = append(args, "-p", port, "127.0.0.1")
	ssh := w.Program("ssh", "openssh-client")

	if out := w.Run(nil, ssh, append(args, "echo", "over", "the", "tunnel")...); out != "over the tunnel\n" {
		t.Errorf("a command prints %q", out)
	}
	t.Run("exit code", func(t *testing.T) {
		err := exec.Command(ssh, append(args, "exit 42")...).Run()
		if code := exitCode(err); code != 42 {
			t.Errorf("the command's exit code arrives as %d, want 42", code)
		}
	})
	t.Run("half-close", func(t *testing.T) {
		cmd := exec.Command(ssh, append(args, "wc -c; echo after")...)
		cmd.Stdin = strings.NewReader("twelve bytes")
		out, err := cmd.Output()
		if err != nil || string(out) != "12\nafter\n" {
			t.Errorf("the end of input passes and output goes on: %q %v", out, err)
		}
	})
	t.Run("100 MB both ways", func(t *testing.T) {
		data := filepath.Join(w.Dir, "data")
		sum := randomFile(t, data, 100<<20)
		in, err := os.Open(data)
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		cmd := exec.Command(ssh, append(args, "cat > "+data+".up && cat "+data+".up")...)
		cmd.Stdin = in
		h := sha256.New()
		cmd.Stdout = h
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%x", h.Sum(nil)); got != sum {
			t.Errorf("what came back differs from what went")
		}
	})
	t.Run("ProxyCommand", func(t *testing.T) {
		proxy := filepath.Join(w.Bin, "adit") + " connect --stdio"
		pc := append(append([]string{}, args[:len(args)-3]...), "-o", "ProxyCommand="+proxy, "gpu-1", "echo hi")
		cmd := exec.Command(ssh, pc...)
		cmd.Env = append(os.Environ(), "ADIT_TUNNEL_URL="+tun.TunnelURL)
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != "hi\n" {
			t.Errorf("ssh -o ProxyCommand='adit connect --stdio': %q %v", out, err)
		}
	})
}

func exitCode(err error) int {
	if e, ok := err.(*exec.ExitError); ok { //nolint:errorlint // exec returns it bare
		return e.ExitCode()
	}
	return -1
}

// randomFile writes n random bytes to a file and returns their SHA-256.
func randomFile(t *testing.T, path string, n int64) string {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(f, h), rand.Reader, n); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

func TestDatabasesThroughTunnels(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	forward := func(target int) string {
		return fmt.Sprint(connect(w, r.Open(sk, "gpu-1", map[string]any{"target_port": target, "tunnel_protocol": "tcp"}).TunnelURL))
	}
	t.Run("psql", func(t *testing.T) {
		port := forward(w.Postgres())
		out := w.Run(nil, "psql", "-h", "127.0.0.1", "-p", port, "-U", "postgres", "-Atc", "select sum(n) from generate_series(1, 100000) n")
		if out != "5000050000\n" {
			t.Errorf("psql prints %q", out)
		}
	})
	t.Run("mariadb", func(t *testing.T) {
		port := forward(w.MariaDB())
		out := w.Run(nil, "mariadb", "--no-defaults", "-h", "127.0.0.1", "-P", port, "-uadit", "-padit", "adit", "-Nse",
			"create table t (n int); insert into t values (1), (2), (3); select sum(n) from t")
		if out != "6\n" {
			t.Errorf("mariadb prints %q", out)
		}
	})
	t.Run("redis-cli", func(t *testing.T) {
		port := forward(w.Redis())
		set := exec.Command("redis-cli", "-p", port, "-x", "set", "k")
		set.Stdin = strings.NewReader(strings.Repeat("v", 1<<20))
		if out, err := set.CombinedOutput(); err != nil || string(out) != "OK\n" {
			t.Errorf("a megabyte is stored: %q %v", out, err)
		}
		if out := w.Run(nil, "redis-cli", "-p", port, "strlen", "k"); out != "1048576\n" {
			t.Errorf("redis-cli prints %q", out)
		}
	})
}

// A raw client: bytes in, end of input, answer after it.
func TestHalfCloseReachesTheApp(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				all, _ := io.ReadAll(c) // ends with the client's half-close
				fmt.Fprintf(c, "%d bytes", len(all))
			}()
		}
	}()
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": l.Addr().(*net.TCPAddr).Port, "tunnel_protocol": "tcp"})
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", connect(w, tun.TunnelURL)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(testkit.Patience))
	if _, err := c.Write(bytes.Repeat([]byte("x"), 300000)); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil || string(answer) != "300000 bytes" {
		t.Errorf("after the half-close the app answers %q %v", answer, err)
	}
}

func TestConnectToAWebAppsAddressSaysSo(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	w.Agent(r, "gpu-1")
	tun := r.Open(r.Credential("integration", world.Team), "gpu-1", map[string]any{"target_port": app(t, hello)})
	_, err := w.Try([]string{"ADIT_TUNNEL_URL=" + tun.TunnelURL}, filepath.Join(w.Bin, "adit"), "connect", "--stdio")
	if err == nil || !strings.Contains(err.Error(), "tunnel for a web app") || !strings.Contains(err.Error(), "--protocol tcp") {
		t.Errorf("whoever connects to a web app's address is told what it is: %v", err)
	}
}
