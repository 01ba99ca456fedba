package terminal

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// account is the user that a terminal runs as.
type account struct {
	name, home, shell string
	uid, gid          uint32
	groups            []uint32
	own               bool // the agent's own user: nothing is switched
}

// lookup finds a user by name; an empty name is the agent's own. Only root can
// become somebody else, and root itself must be named.
func lookup(name string) (account, error) {
	euid := os.Geteuid()
	if name == "" {
		if euid == 0 {
			return account{}, errors.New("the agent runs as root: name the user that terminals run as in terminal.user (root itself, if you mean it)")
		}
		name = strconv.Itoa(euid)
	}
	a, err := entry(name)
	if err != nil {
		return a, err
	}
	a.own = int(a.uid) == euid
	if !a.own && euid != 0 {
		return a, fmt.Errorf("terminal.user is %s, and the agent does not run as root: it cannot become another user", a.name)
	}
	if !a.own {
		a.groups = groupsOf(a)
	}
	return a, nil
}

// entry reads the user database: its file, else, for directories such as LDAP, the
// system's own tool. os/user knows no shells.
func entry(name string) (account, error) {
	if f, err := os.Open("/etc/passwd"); err == nil {
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if a, ok := parseEntry(lines.Text()); ok && (a.name == name || strconv.Itoa(int(a.uid)) == name) {
				return a, nil
			}
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "getent", "passwd", "--", name).Output()
	if err == nil {
		if a, ok := parseEntry(strings.TrimSpace(string(out))); ok {
			return a, nil
		}
	}
	return account{}, fmt.Errorf("terminal.user: this machine knows no user %q", name)
}

// parseEntry reads a line of passwd(5).
func parseEntry(line string) (account, bool) {
	f := strings.Split(line, ":")
	if len(f) != 7 {
		return account{}, false
	}
	uid, err := strconv.ParseUint(f[2], 10, 32)
	if err != nil {
		return account{}, false
	}
	gid, err := strconv.ParseUint(f[3], 10, 32)
	if err != nil {
		return account{}, false
	}
	return account{name: f[0], uid: uint32(uid), gid: uint32(gid), home: f[5], shell: f[6]}, true
}

func groupsOf(a account) []uint32 {
	groups := []uint32{a.gid}
	u, err := user.Lookup(a.name)
	if err != nil {
		return groups
	}
	ids, err := u.GroupIds()
	if err != nil {
		return groups
	}
	for _, id := range ids {
		if n, err := strconv.ParseUint(id, 10, 32); err == nil && !slices.Contains(groups, uint32(n)) {
			groups = append(groups, uint32(n))
		}
	}
	return groups
}

// credential is nil for the agent's own user.
func (a account) credential() *syscall.Credential {
	if a.own {
		return nil
	}
	return &syscall.Credential{Uid: a.uid, Gid: a.gid, Groups: a.groups}
}

// defaultPath is a login's.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environ is a terminal's environment. What is the agent's own, its secrets above
// all, is left out; another user gets nothing of it but language and time zone.
func (a account) environ(shell string, more map[string]string) []string {
	env := map[string]string{"PATH": defaultPath, "LANG": "C.UTF-8"}
	for _, kv := range os.Environ() {
		k, v, _ := strings.Cut(kv, "=")
		if a.own && !agentsOwn(k) || k == "LANG" || k == "TZ" || strings.HasPrefix(k, "LC_") {
			env[k] = v
		}
	}
	env["USER"], env["LOGNAME"], env["HOME"], env["SHELL"] = a.name, a.name, a.home, shell
	env["TERM"], env["COLORTERM"] = "xterm-256color", "truecolor"
	maps.Copy(env, more)
	out := make([]string, 0, len(env))
	for k, v := range env {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return out
}

func agentsOwn(key string) bool {
	switch key {
	case "NOTIFY_SOCKET", "INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES",
		"MEMORY_PRESSURE_WATCH", "MEMORY_PRESSURE_WRITE", "COLUMNS", "LINES", "TERMCAP":
		return true
	}
	return strings.HasPrefix(key, "ADIT_") || strings.HasSuffix(key, "_DIRECTORY")
}
