package aditcli

import (
	"runtime"

	"github.com/adit-tunnel/adit/shared/lifecycle"
)

// version is the --json document of the version command.
type version struct {
	Version  string `json:"version"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func versionInfo() version {
	return version{Version: lifecycle.Version(), Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
}
