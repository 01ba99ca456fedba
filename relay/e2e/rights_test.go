package e2e

import (
	"net/http"
	"testing"

	"github.com/adit-tunnel/adit/relay/e2e/world"
	"github.com/adit-tunnel/adit/shared/api"
)

// TestAKickedViewerStaysOut comes back to a tunnel with other user agents, in both
// forms of its address, after the owner sent the viewer away. Who came by a named link
// of their own stays.
func TestAKickedViewerStaysOut(t *testing.T) {
	t.Parallel()
	w := world.New(t)
	r := w.Relay()
	w.Agent(r, "gpu-1")
	sk := r.Credential("integration", world.Team)
	tun := r.Open(sk, "gpu-1", map[string]any{"target_port": app(t, hello), "host_header": "public"})
	link := makeLink(r, sk, tun, map[string]any{"name": "for the customer"})
	c := w.HTTP()
	as := func(url, agent string) int {
		status, _ := world.Get(c, url, "User-Agent", agent)
		return status
	}
	if status := as(r.PathURL(tun), "Mallory"); status != http.StatusOK {
		t.Fatalf("before the kick: %d", status)
	}
	var list api.ViewerList
	if status, p := r.API(tun.AdminToken, http.MethodGet, "/tunnels/"+string(tun.SessionID)+"/viewers", nil, &list); status != http.StatusOK || len(list.Viewers) != 1 {
		t.Fatalf("the viewers: %d %v %+v", status, p, list)
	}
	if status, p := r.API(tun.AdminToken, http.MethodDelete, "/tunnels/"+string(tun.SessionID)+"/viewers/"+string(list.Viewers[0].ViewerID), nil, nil); status != http.StatusNoContent {
		t.Fatalf("kick: %d %v", status, p)
	}
	for _, agent := range []string{"Mallory", "Bob", "Mozilla/5.0", ""} {
		for _, url := range []string{r.PathURL(tun), r.HostURL(tun)} {
			if status := as(url, agent); status != http.StatusForbidden {
				t.Errorf("the kicked viewer, now as %q, is answered %d", agent, status)
			}
		}
	}
	if status := as(link.URL, "Customer"); status != http.StatusOK {
		t.Errorf("who has a named link of their own is answered %d", status)
	}
}
