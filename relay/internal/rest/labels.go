package rest

import (
	"regexp"
	"slices"
	"strings"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
)

// labels are what the machine's owner configured, and what follows from the facts: gpu,
// the GPUs' families, the tool, the architecture. That is found here and not by the
// agent: agents of the last release have these labels, too, they follow the facts from
// one heartbeat to the next, and they take no room in the store.
func labels(p store.Presence) api.Labels {
	out := api.LabelsOf(p.Labels)
	for _, g := range p.Facts.GPUs {
		if g.Type == "cpu" { // a list of devices may have the processor in it
			continue
		}
		out = append(out, "gpu", gpuFamily(g.Name))
	}
	tool := p.Facts.Tool
	if tool == "" && p.Facts.ComfyUIVersion != "" {
		tool = "comfyui"
	}
	_, architecture, _ := strings.Cut(p.Platform, "/")
	out = append(out, strings.ToLower(tool), architecture)
	slices.Sort(out)
	out = slices.Compact(out)
	return slices.DeleteFunc(out, func(s string) bool { return s == "" })
}

var (
	// gpuMaker is what may stand before a GPU's model, with the device that ComfyUI names.
	gpuMaker = regexp.MustCompile(`^(?:CUDA:\d+ |HIP:\d+ |NVIDIA |TESLA |GRID |GEFORCE |QUADRO |AMD |INSTINCT |RADEON |PRO )+`)
	// gpuModel is a model as makers write it. What a family is distinguished by is kept:
	// 4080 and 4080 SUPER are two, an A100 with 40 and one with 80 GB are not.
	gpuModel = regexp.MustCompile(`^(?:` +
		`(?:RTX|GTX|GT|RX) (?:PRO )?A?\d{3,5}(?: (?:TI SUPER|TI|SUPER|XTX|XT|GRE))?(?: SFF)?(?: ADA)?` + // RTX 4090, RTX A6000, RX 7900 XTX
		`|TITAN (?:RTX|XP|X|V)` +
		`|MX\d{3}` +
		`|(?:GB|GH|MI|[ABHKLMPTVW])\d{1,4}[A-Z]{0,2}` + // A100, T4, L40S, GH200, MI300X, W7900
		`)(?:[^A-Z0-9]|$)`)
)

// gpuFamily is a GPU's model as people say it, in lower case: a100 of "NVIDIA
// A100-SXM4-80GB", rtx-4090 of "NVIDIA GeForce RTX 4090"; empty for a name that has none.
func gpuFamily(name string) string {
	name = strings.Join(strings.Fields(strings.ToUpper(name)), " ")
	name = name[len(gpuMaker.FindString(name)):]
	model := gpuModel.FindString(name)
	return strings.ToLower(strings.ReplaceAll(strings.TrimRightFunc(model, notOfAModel), " ", "-"))
}

func notOfAModel(r rune) bool { return (r < 'A' || r > 'Z') && (r < '0' || r > '9') }
