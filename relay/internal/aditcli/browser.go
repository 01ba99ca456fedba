package aditcli

import (
	"context"
	"net/url"
	"os/exec"
	"runtime"
)

// openBrowser opens a page in the person's browser, if there is one on this machine: not
// in a session over ssh, and not without a screen. It says whether it did.
func (a *app) openBrowser(ctx context.Context, page string) bool {
	u, err := url.Parse(page)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || !a.errTTY || a.getenv("SSH_CONNECTION") != "" {
		return false // the address came over the network: no other scheme is opened
	}
	var command []string
	switch runtime.GOOS {
	case "windows":
		command = []string{"rundll32", "url.dll,FileProtocolHandler"}
	case "darwin":
		command = []string{"open"}
	default:
		if a.getenv("DISPLAY") == "" && a.getenv("WAYLAND_DISPLAY") == "" {
			return false
		}
		command = []string{"xdg-open"}
	}
	// The browser outlives this command.
	return exec.CommandContext(context.WithoutCancel(ctx), command[0], append(command[1:], u.String())...).Start() == nil
}
