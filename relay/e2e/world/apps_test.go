package world_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/adit-tunnel/adit/relay/e2e/world"
)

// The apps must work without Adit before they can say anything about it.
func TestAppsWorkDirectly(t *testing.T) {
	w := &world.World{T: t, Dir: t.TempDir()}
	get := func(port int, path string) string {
		status, body := world.Get(http.DefaultClient, fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
		if status != http.StatusOK {
			t.Errorf("port %d%s answers %d", port, path, status)
		}
		return body
	}
	jupyter, token := w.Jupyter()
	if body := get(jupyter, "/api/status?token="+token); !strings.Contains(body, "kernels") {
		t.Errorf("jupyter says %s", body)
	}
	w.WriteFile("www/index.html", "hello")
	if body := get(w.Nginx(w.Dir+"/www"), "/"); body != "hello" {
		t.Errorf("nginx says %s", body)
	}
	get(w.Prometheus(), "/-/healthy")
	_, web := w.VNC()
	get(web, "/vnc_lite.html")
	port, args := w.SSHD()
	if out := w.Run(nil, "ssh", append(args, "-p", fmt.Sprint(port), "127.0.0.1", "echo", "hi")...); out != "hi\n" {
		t.Errorf("ssh says %q", out)
	}
	if out := w.Run(nil, "psql", "-h", "127.0.0.1", "-p", fmt.Sprint(w.Postgres()), "-U", "postgres", "-Atc", "select 1"); out != "1\n" {
		t.Errorf("psql says %q", out)
	}
	if out := w.Run(nil, "mariadb", "--no-defaults", "-h", "127.0.0.1", "-P", fmt.Sprint(w.MariaDB()), "-uadit", "-padit", "-Nse", "select 1"); out != "1\n" {
		t.Errorf("mariadb says %q", out)
	}
	if out := w.Run(nil, "redis-cli", "-p", fmt.Sprint(w.Redis()), "ping"); out != "PONG\n" {
		t.Errorf("redis says %q", out)
	}
}

func TestBrowserWorksDirectly(t *testing.T) {
	w := &world.World{T: t, Dir: t.TempDir()}
	w.WriteFile("www/index.html", "<title>start</title><script>document.title = 'ready'</script>")
	port := w.Nginx(w.Dir + "/www")
	ctx := w.Browser(time.Minute)
	w.Do(ctx, "a page from nginx under a name below localhost", world.Navigate(fmt.Sprintf("http://abc.localhost:%d/", port)), world.Until("document.title === 'ready'"))
}
