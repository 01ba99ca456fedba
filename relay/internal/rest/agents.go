package rest

import (
	"cmp"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/creds"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

func (a *API) listAgents(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	page, perPage, err := paging(r)
	if err != nil {
		return err
	}
	now := time.Now()
	here := slices.DeleteFunc(a.cfg.Store.Presences(p.Team), func(x store.Presence) bool { return a.left(x, now) || !p.MayReach(x.Agent) })
	out := api.AgentList{AgentList: []api.Agent{}, PageMeta: api.PageMeta{CurrentPage: page, PerPage: perPage, TotalCount: len(here)}}
	for _, x := range pageOf(here, page, perPage) {
		out.AgentList = append(out.AgentList, a.describe(x, now))
	}
	return send(w, http.StatusOK, out)
}

func (a *API) getAgent(w http.ResponseWriter, r *http.Request, p creds.Principal) error {
	key, err := a.agent(r, p)
	if err != nil {
		return err
	}
	if _, err := query(r); err != nil {
		return err
	}
	now := time.Now()
	x, ok := a.cfg.Store.Presence(key)
	if !ok || a.left(x, now) {
		return api.NotFound(api.CodeAgentNotFound)
	}
	return send(w, http.StatusOK, a.describe(x, now))
}

// left says that an agent's link has been gone for so long that lists leave it out.
func (a *API) left(p store.Presence, now time.Time) bool {
	return !p.GoneSince.IsZero() && now.Sub(p.GoneSince) >= a.cfg.Grace
}

// describe puts together what is known of an agent.
func (a *API) describe(p store.Presence, now time.Time) api.Agent {
	if a.cfg.Heartbeats != nil {
		if fresh, ok := a.cfg.Heartbeats.Heartbeat(p.Key()); ok && fresh.Epoch == p.Epoch {
			p = fresh
		}
	}
	rec, _ := a.cfg.Store.Agent(p.Key())
	f := p.Facts
	out := api.Agent{
		AgentID: p.Agent, AgentLabels: labels(p), LastHeartbeat: p.Heartbeat.UTC().Truncate(time.Millisecond), AgentVersion: p.Version,
		PlatformArch: p.Platform, ConnectedAt: p.ConnectedAt.UTC(), RunningTasks: runningTasks(rec, now), TasksCompleted: rec.Completed,
		Tool: f.Tool, ToolVersion: f.ToolVersion, ComfyUIVersion: f.ComfyUIVersion, GPUCapacity: rec.Capacity,
		SyncPhase: rec.Declared.SyncPhase, SyncDetail: rec.Declared.SyncDetail, SyncPercent: rec.Declared.SyncPercent,
		Tunnels: liveTunnels(rec, now), Paused: rec.Declared.Paused, RelayID: p.Relay,
	}
	out.RunningCount = len(out.RunningTasks)
	if out.RunningCount > 0 {
		out.CurrentTaskID = out.RunningTasks[0]
	}
	if f.Link != nil {
		out.LinkRTTMillis, out.LinkCongestion = f.Link.RTTMillis, f.Link.Congestion
	}
	out.SystemStats = systemStats(p)
	sick := cmp.Or(rec.Unhealthy, f.Unhealthy)
	switch {
	case sick != "":
		out.AgentStatus, out.StatusDetail = api.StatusUnhealthy, sick
	case out.Tunnels > 0:
		out.AgentStatus = api.StatusTunnel
	case rec.Declared.SyncPhase != "":
		out.AgentStatus = api.StatusSyncing
	case out.RunningCount > 0:
		out.AgentStatus = api.StatusBusy
	default:
		out.AgentStatus = api.StatusIdle
	}
	if out.StatusDetail == "" && !p.GoneSince.IsZero() {
		out.StatusDetail = "the link is lost since " + p.GoneSince.UTC().Format(time.RFC3339)
	}
	if out.StatusDetail == "" && f.Hooks != nil {
		out.StatusDetail = "the " + f.Hooks.Hook + " hook failed: " + f.Hooks.Detail
	}
	return out
}

// runningTasks lists the leases whose holders may go on, the oldest first.
func runningTasks(rec store.AgentRecord, now time.Time) []ident.TaskID {
	out := []ident.TaskID{}
	for id, l := range rec.Leases {
		if now.Before(l.Expires) {
			out = append(out, id)
		}
	}
	slices.SortFunc(out, func(x, y ident.TaskID) int {
		return cmp.Or(cmp.Compare(rec.Leases[x].Fencing, rec.Leases[y].Fencing), cmp.Compare(x, y))
	})
	return out
}

// liveTunnels counts what keeps tasks out: also what waits or is being closed.
func liveTunnels(rec store.AgentRecord, now time.Time) int {
	n := 0
	for t := range maps.Values(rec.Tunnels) {
		if now.Before(t.Expires) {
			n++
		}
	}
	return n
}

// systemStats is nil when the machine reported nothing of it.
func systemStats(p store.Presence) *api.SystemStats {
	f := p.Facts
	if f.ComfyUIVersion == "" && f.PyTorchVersion == "" && f.OSType == "" && len(f.GPUs) == 0 {
		return nil
	}
	s := &api.SystemStats{ComfyUIVersion: f.ComfyUIVersion, PyTorchVersion: f.PyTorchVersion, OSType: f.OSType}
	for _, g := range f.GPUs {
		s.GPUDevices = append(s.GPUDevices, api.GPUDevice{DeviceName: g.Name, DeviceType: g.Type, VRAMTotal: g.VRAMTotal, VRAMFree: g.VRAMFree})
	}
	return s
}
