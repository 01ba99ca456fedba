package rest_test

import (
	"slices"
	"testing"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
	"github.com/adit-tunnel/adit/shared/wire"
)

// labelsOf are the labels of an agent that says this of itself.
func (w *world) labelsOf(change func(*store.Presence)) []string {
	w.t.Helper()
	p, _ := w.store.Presence(ident.AgentKey{Team: ours, Agent: "gpu-1"})
	p.Labels, p.Facts, p.Platform = nil, wire.Facts{}, ""
	change(&p)
	w.store.SetPresence(p)
	return into[api.Agent](w.t, w.do("GET", "/agents/gpu-1", "user", ""), 200).AgentLabels
}

func TestLabelsComeFromConfigurationAndFacts(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]struct {
		change func(*store.Presence)
		want   []string
	}{
		"nothing is known": {func(*store.Presence) {}, nil},
		"everything": {func(p *store.Presence) {
			p.Labels, p.Platform = api.Labels{"pool=render", "fast", "gpu"}.Mapping(), "linux/amd64"
			p.Facts = wire.Facts{Tool: "comfyui", GPUs: []wire.GPU{{Name: "NVIDIA A100-SXM4-80GB", Type: "cuda"}, {Name: "NVIDIA A100-SXM4-80GB"}, {Name: "NVIDIA L4"}}}
		}, []string{"a100", "amd64", "comfyui", "fast", "gpu", "l4", "pool=render"}},
		"no GPU": {func(p *store.Presence) {
			p.Platform = "linux/arm64"
			p.Facts = wire.Facts{ComfyUIVersion: "0.3.40", GPUs: []wire.GPU{{Name: "cpu", Type: "cpu"}}}
		}, []string{"arm64", "comfyui"}},
		"an agent of the last release": {func(p *store.Presence) { p.Labels = map[string]string{"zone": "a", "rack": "7", "fast": ""} }, []string{"fast", "rack=7", "zone=a"}},
	} {
		if got := w.labelsOf(c.change); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestTheFamilyOfAGPU(t *testing.T) {
	w := newWorld(t)
	for name, want := range map[string]string{
		"NVIDIA A100-SXM4-80GB": "a100", "NVIDIA A100 80GB PCIe": "a100", "A100-SXM4-40GB": "a100", "NVIDIA A100-SXM4-40GB MIG 1g.5gb": "a100",
		"NVIDIA H100 PCIe": "h100", "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200", "NVIDIA GH200 480GB": "gh200", "NVIDIA B200": "b200", "NVIDIA GB200": "gb200",
		"Tesla T4": "t4", "Tesla V100-SXM2-16GB": "v100", "Tesla P100-PCIE-16GB": "p100", "Tesla K80": "k80", "NVIDIA L4": "l4", "NVIDIA L40S": "l40s", "NVIDIA A10G": "a10g", "NVIDIA A40-48Q": "a40",
		"NVIDIA GeForce RTX 4090": "rtx-4090", "NVIDIA GeForce RTX 4090 Laptop GPU": "rtx-4090", "NVIDIA GeForce RTX 4080 SUPER": "rtx-4080-super", "NVIDIA GeForce RTX 4070 Ti SUPER": "rtx-4070-ti-super",
		"NVIDIA GeForce RTX 3080 Ti": "rtx-3080-ti", "GeForce GTX 1080 Ti": "gtx-1080-ti", "cuda:0 NVIDIA GeForce RTX 4090 : cudaMallocAsync": "rtx-4090", "cuda:0 NVIDIA A100-SXM4-80GB : native": "a100",
		"NVIDIA RTX A6000": "rtx-a6000", "NVIDIA RTX 6000 Ada Generation": "rtx-6000-ada", "Quadro RTX 8000": "rtx-8000", "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "rtx-pro-6000", "NVIDIA TITAN RTX": "titan-rtx",
		"AMD Instinct MI300X": "mi300x", "AMD Instinct MI250X / MI250": "mi250x", "AMD Radeon RX 7900 XTX": "rx-7900-xtx", "AMD Radeon PRO W7900": "w7900",
		"": "", "NVIDIA Graphics Device": "", "Device 1234": "", "AMD Radeon Graphics": "", "Orin (nvgpu)": "", "llvmpipe (LLVM 15)": "", "A100000": "", "Abacus": "", "NVIDIA": "",
	} {
		got := w.labelsOf(func(p *store.Presence) { p.Facts.GPUs = []wire.GPU{{Name: name}} })
		full := []string{"gpu"}
		if want != "" {
			full = append(full, want)
			slices.Sort(full)
		}
		if !slices.Equal(got, full) {
			t.Errorf("%q: %q, want %q", name, got, full)
		}
	}
}
