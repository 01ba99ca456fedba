package world

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
)

// Net is a network of hosts, each a network namespace with two cables: one to where
// users and agents are, and the tests themselves, and one to the other hosts only.
type Net struct {
	w      *World
	name   string // of all that belongs to it, to begin with
	subnet int    // third byte of the users' addresses; the back's is one more
	hosts  int
}

// nets counts the networks of this process, whose names must differ.
var nets atomic.Int32

// NewNet makes a network that ends with the test. It needs root and iproute2.
func (w *World) NewNet(hosts int) *Net {
	w.T.Helper()
	if os.Geteuid() != 0 {
		w.T.Skip("network namespaces need root")
	}
	n := &Net{w: w, name: fmt.Sprintf("ad%x%x", os.Getpid()&0xffff, nets.Add(1)), hosts: hosts}
	for taken := true; taken; {
		n.subnet = 2 * rand.IntN(127)
		taken = strings.Contains(n.ip("-o", "addr"), fmt.Sprintf("198.18.%d.", n.subnet))
	}
	w.T.Cleanup(n.remove)
	n.ip("netns", "add", n.sw())
	n.in(n.sw(), "link", "set", "lo", "up")
	for _, bridge := range []string{"users", "back"} {
		n.in(n.sw(), "link", "add", bridge, "type", "bridge")
		n.in(n.sw(), "link", "set", bridge, "up")
	}
	n.ip("link", "add", n.name, "type", "veth", "peer", "name", "tests", "netns", n.sw())
	n.in(n.sw(), "link", "set", "tests", "master", "users", "up")
	n.ip("addr", "add", fmt.Sprintf("198.18.%d.1/24", n.subnet), "dev", n.name)
	n.ip("link", "set", n.name, "up")
	for i := range hosts {
		host := n.host(i)
		n.ip("netns", "add", host)
		n.in(host, "link", "set", "lo", "up")
		for _, bridge := range []string{"users", "back"} {
			port := fmt.Sprint(bridge, i)
			n.ip("link", "add", bridge, "netns", host, "type", "veth", "peer", "name", port, "netns", n.sw())
			n.in(n.sw(), "link", "set", port, "master", bridge, "up")
			addr := n.Users(i)
			if bridge == "back" {
				addr = n.Back(i)
			}
			n.in(host, "addr", "add", addr+"/24", "dev", bridge)
			n.in(host, "link", "set", bridge, "up")
		}
	}
	return n
}

func (n *Net) sw() string        { return n.name + "sw" }
func (n *Net) host(i int) string { return fmt.Sprint(n.name, "h", i) }

// Users is a host's address for users, agents and tests.
func (n *Net) Users(i int) string { return fmt.Sprintf("198.18.%d.%d", n.subnet, 10+i) }

// Back is a host's address for the other hosts.
func (n *Net) Back(i int) string { return fmt.Sprintf("198.18.%d.%d", n.subnet+1, 10+i) }

// On is the beginning of a command line that runs on a host.
func (n *Net) On(i int) []string { return []string{"ip", "netns", "exec", n.host(i)} }

// Pull pulls a host's cable to the other hosts out of the switch: what was sent is
// lost, and no end is told.
func (n *Net) Pull(i int) { n.in(n.sw(), "link", "set", fmt.Sprint("back", i), "down") }

// Plug puts it in again.
func (n *Net) Plug(i int) { n.in(n.sw(), "link", "set", fmt.Sprint("back", i), "up") }

func (n *Net) in(netns string, args ...string) { n.ip(append([]string{"-n", netns}, args...)...) }

func (n *Net) ip(args ...string) string {
	n.w.T.Helper()
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		n.w.T.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// remove takes everything away; the processes in it have ended before.
func (n *Net) remove() {
	_ = exec.Command("ip", "link", "del", n.name).Run()
	for i := range n.hosts {
		_ = exec.Command("ip", "netns", "del", n.host(i)).Run()
	}
	_ = exec.Command("ip", "netns", "del", n.sw()).Run()
}
