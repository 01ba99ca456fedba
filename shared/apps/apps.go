// Package apps owns the table of programs that people run on GPU machines: the names
// that probes and people have for them, and the ports where they usually listen. The
// console's script is bundled with the same file. It never says what does listen
// somewhere: that is for a probe to find out.
package apps

import (
	_ "embed"
	"encoding/json"
	"slices"
	"strings"
)

// DefaultPort is that of a tunnel whose port nobody named: ComfyUI's.
const DefaultPort = 8188

// App is one program.
type App struct {
	ID     string   `json:"id"`   // as a probe and the API name it
	Name   string   `json:"name"` // as people do
	Ports  []uint16 `json:"ports"`
	TCP    bool     `json:"tcp,omitempty"`    // it is no web app: its tunnels carry bytes
	Preset bool     `json:"preset,omitempty"` // the console offers it, in the table's order
}

//go:embed apps.json
var file []byte

// Table has every app. It is not to be changed.
var Table = read()

func read() (table []App) {
	if err := json.Unmarshal(file, &table); err != nil {
		panic("apps: read the embedded table: " + err.Error())
	}
	return table
}

// Usually names what usually listens on a port, as a remark in parentheses behind it;
// empty where nothing does.
func Usually(port uint16) string {
	var names []string
	for _, a := range Table {
		if slices.Contains(a.Ports, port) {
			names = append(names, a.Name)
		}
	}
	if names == nil {
		return ""
	}
	return " (usually " + strings.Join(names, " or ") + ")"
}
