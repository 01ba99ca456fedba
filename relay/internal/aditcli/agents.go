package aditcli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

func (a *app) agentsCommand() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use:   "agents",
		Short: "list the team's machines and their states",
		Example: `  adit agents
  adit agents --watch
  adit agents --json | jq -r '.agent_list[] | select(.agent_status=="idle") | .agent_id'`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.connectRelay(cmd)
			if err != nil {
				return err
			}
			defer s.client.Close()
			if watch && a.outTTY && !a.json {
				return a.watchTable(cmd.Context(), s)
			}
			if watch {
				return a.watchLines(cmd.Context(), s, "")
			}
			stop := a.spin("listing agents")
			l, err := s.client.AllAgents(cmd.Context())
			stop()
			if err != nil {
				return err
			}
			if a.json {
				return a.document(l)
			}
			if len(l.AgentList) == 0 {
				a.notef("no agents are connected")
				return nil
			}
			return a.printf("%s", a.agentTable(l.AgentList, time.Now()))
		},
	}
	cmd.Flags().BoolVar(&watch, "watch", false, "keep the list up to date (off a terminal: one line per change) until interrupted")
	return cmd
}

func (a *app) watchCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "watch [AGENT]",
		Short: "print changes of agents and tunnels as they happen",
		Long: `watch prints one line for every change of the team's agents and tunnels, until
interrupted; with --json one event document per line. It reconnects by itself.`,
		Example: `  adit watch
  adit watch gpu-7 --json`,
		ValidArgsFunction: a.completeAgents,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return exactArgs("AGENT")(cmd, args)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var only ident.AgentID
			if len(args) == 1 {
				id, err := parseAgent(args[0])
				if err != nil {
					return err
				}
				only = id
			}
			s, err := a.connectRelay(cmd)
			if err != nil {
				return err
			}
			defer s.client.Close()
			return a.watchLines(cmd.Context(), s, only)
		},
	}
}

// ended turns the end of a watch by a signal into success.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
		return nil
	}
	return err
}

func (a *app) lost(err error, wait time.Duration) {
	a.notef("adit: event stream lost (%s), trying again in %s", err.Error(), wait.Round(100*time.Millisecond))
}

func (a *app) watchLines(ctx context.Context, s *session, only ident.AgentID) error {
	now := func() string { return time.Now().Format(time.TimeOnly) }
	err := s.client.Watch(ctx, func(ev api.Event) error {
		if only != "" && ev.Kind != api.EventSnapshot && ev.AgentID != only {
			return nil
		}
		if only != "" {
			ev.Agents = slices.DeleteFunc(ev.Agents, func(g api.Agent) bool { return g.AgentID != only })
		}
		if a.json {
			return a.line(ev)
		}
		switch ev.Kind {
		case api.EventSnapshot:
			for _, g := range ev.Agents {
				if err := a.printf("%s  %s\n", now(), a.agentLine(g)); err != nil {
					return err
				}
			}
		case api.EventAgentChanged:
			if ev.Agent != nil {
				return a.printf("%s  %s\n", now(), a.agentLine(*ev.Agent))
			}
		case api.EventAgentGone:
			return a.printf("%s  %s  gone\n", now(), clean(string(ev.AgentID)))
		default:
			return a.printf("%s\n", strings.TrimRight(fmt.Sprintf("%s  %s  %s %s  %s", now(), clean(string(ev.AgentID)), clean(strings.ReplaceAll(ev.Kind, "_", " ")), clean(string(ev.Session)), clean(ev.Detail)), " "))
		}
		return nil
	}, a.lost)
	return ended(ctx, err)
}

func (a *app) agentLine(g api.Agent) string {
	parts := []string{clean(string(g.AgentID)), a.paint(statusColour(g.AgentStatus), clean(string(g.AgentStatus)))}
	if g.Tunnels > 0 {
		parts = append(parts, fmt.Sprintf("tunnels %d", g.Tunnels))
	}
	if g.RunningCount > 0 {
		parts = append(parts, fmt.Sprintf("tasks %d", g.RunningCount))
	}
	if d := stateDetail(g); d != "" {
		parts = append(parts, clean(d))
	}
	return strings.Join(parts, "  ")
}

// watchTable keeps a table on the terminal up to date.
func (a *app) watchTable(ctx context.Context, s *session) error {
	agents := map[ident.AgentID]api.Agent{}
	err := s.client.Watch(ctx, func(ev api.Event) error {
		switch ev.Kind {
		case api.EventSnapshot:
			clear(agents)
			for _, g := range ev.Agents {
				agents[g.AgentID] = g
			}
		case api.EventAgentChanged:
			if ev.Agent != nil {
				agents[ev.Agent.AgentID] = *ev.Agent
			}
		case api.EventAgentGone:
			delete(agents, ev.AgentID)
		default:
			return nil
		}
		sorted := slices.SortedFunc(maps.Values(agents), func(x, y api.Agent) int { return strings.Compare(string(x.AgentID), string(y.AgentID)) })
		// ECMA-48: cursor home, text, erase what is left below.
		return a.printf("\x1b[H\x1b[2J%s%s", a.agentTable(sorted, time.Now()), a.paint(faint, "every change is shown; ctrl-c ends\n"))
	}, a.lost)
	return ended(ctx, err)
}

func (a *app) agentTable(l []api.Agent, now time.Time) string {
	var t table
	t.row("AGENT", "STATUS", "TASKS", "TUNNELS", "GPU", "TOOL", "SEEN", "DETAIL")
	for _, g := range l {
		t.row(string(g.AgentID), string(g.AgentStatus), fmt.Sprint(g.RunningCount), fmt.Sprint(g.Tunnels), gpuText(g.SystemStats), toolText(g), ago(g.LastHeartbeat, now), stateDetail(g))
		t.tint(1, statusColour(g.AgentStatus))
	}
	return t.render(a, true)
}

func stateDetail(g api.Agent) string {
	var parts []string
	if g.Paused {
		parts = append(parts, "paused")
	}
	if g.SyncPhase != "" {
		s := strings.TrimSpace(g.SyncPhase + " " + g.SyncDetail)
		if g.SyncPercent != nil {
			s += fmt.Sprintf(" %.0f%%", *g.SyncPercent)
		}
		parts = append(parts, s)
	}
	if g.StatusDetail != "" {
		parts = append(parts, g.StatusDetail)
	}
	if g.CurrentTaskID != "" {
		parts = append(parts, string(g.CurrentTaskID))
	}
	return strings.Join(parts, ", ")
}

func toolText(g api.Agent) string {
	if g.Tool == "" && g.ComfyUIVersion != "" {
		return "comfyui " + g.ComfyUIVersion
	}
	return strings.TrimSpace(g.Tool + " " + g.ToolVersion)
}

// gpuText is one line about the devices: "2x RTX 4090, 30.1 GiB free".
func gpuText(s *api.SystemStats) string {
	if s == nil || len(s.GPUDevices) == 0 {
		return ""
	}
	var free, total uint64
	for _, d := range s.GPUDevices {
		free, total = free+d.VRAMFree, total+d.VRAMTotal
	}
	text := s.GPUDevices[0].DeviceName
	if n := len(s.GPUDevices); n > 1 {
		text = fmt.Sprintf("%dx %s", n, text)
	}
	if total > 0 {
		text += fmt.Sprintf(", %s free", bytesText(int64(free)))
	}
	return text
}
