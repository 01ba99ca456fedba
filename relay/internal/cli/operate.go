package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/relay/internal/admin"
	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/logs"
	"github.com/adit-tunnel/adit/shared/printable"
)

func newStatus() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "status", Short: "show what the running relay holds, and its store", Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := dial(cmd)
			if err != nil {
				return err
			}
			var st admin.Status
			if err := c.Call(cmd.Context(), http.MethodGet, "/v1/status", nil, nil, &st); err != nil {
				return fmt.Errorf("ask for the status: %w", err)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), st)
			}
			w := cmd.OutOrStdout()
			state := "serving"
			if st.Draining {
				state = "draining"
			}
			kind := "external"
			if st.Store.Embedded {
				kind = "embedded"
			}
			quorum := "has quorum"
			switch {
			case !st.Store.Quorum:
				quorum = "NO QUORUM: " + st.Store.Detail
			case st.Store.Full:
				quorum = "FULL"
			}
			show(w, "relay     %s, %s, up %s, version %s\nurl       %s\nstore     %s, %s, %s, revision %d\nagents    %d\ntunnels   %d\nstreams   %d\n",
				st.Relay, state, time.Since(st.StartedAt).Round(time.Second), st.Version, st.PublicURL, kind, quorum, sizeOf(st.Store), st.Store.Revision, st.Agents, st.Tunnels, st.Streams)
			if st.Store.Full {
				fmt.Fprintf(w, "          %s\n", st.Store.Detail)
			}
			for _, c := range st.Certificates {
				show(w, "tls       %s, from %s, until %s\n", strings.Join(c.Names, ", "), c.Source, day(c.NotAfter, "- (none yet)"))
			}
			for _, r := range st.Relays {
				show(w, "pool      %s%s, %s, version %s, since %s\n", r.ID, linkTo(st, r), poolState(r), r.Version, since(r.Started))
			}
			for _, warning := range st.Warnings {
				show(cmd.ErrOrStderr(), "warning: %s\n", warning)
			}
			return nil
		},
	}
	socketFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// sizeOf says how much of its quota a store has.
func sizeOf(st store.Status) string {
	if st.QuotaBytes == 0 {
		return fmt.Sprintf("%d bytes", st.SizeBytes)
	}
	return fmt.Sprintf("%d of %d bytes", st.SizeBytes, st.QuotaBytes)
}

// poolState says in a word what a relay of the pool does.
func poolState(r store.RelayRecord) string {
	if r.Draining {
		return "draining"
	}
	return "serving"
}

// linkTo says how this relay is linked to another one.
func linkTo(st admin.Status, r store.RelayRecord) string {
	switch {
	case r.ID == st.Relay:
		return " (this one)"
	case slices.Contains(st.Peers, r.ID):
		return " (linked)"
	}
	return ""
}

func since(t time.Time) string {
	if t.IsZero() {
		return "an unknown time"
	}
	return t.UTC().Format(time.RFC3339)
}

func newDrain() *cobra.Command {
	cmd := &cobra.Command{
		Use: "drain", Short: "stop the running relay gracefully, as SIGTERM does", Args: exactArgs(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := dial(cmd)
			if err != nil {
				return err
			}
			if err := c.Call(cmd.Context(), http.MethodPost, "/v1/drain", nil, nil, nil); err != nil {
				return fmt.Errorf("drain the relay: %w", err)
			}
			fmt.Fprintln(cmd.ErrOrStderr(), "the relay drains and stops")
			return nil
		},
	}
	socketFlag(cmd)
	return cmd
}

func newAudit() *cobra.Command {
	var team, agent, session, event, since string
	cmd := &cobra.Command{
		Use: "audit", Short: "print the audit log of the running relay as JSON lines", Args: exactArgs(0),
		Long: `Audit prints what the running relay recorded: who opened, closed, extended and
viewed tunnels, who was refused, what was granted and revoked. Of what one caller
causes again and again (refusals, views, an agent that reconnects) only the first
records are written, then one each half minute; its 'left_out' is how many like it
were not. What opens, closes, grants or revokes is always written. A team that
writes more than its share of the history loses its own oldest records first, not
those of others.`,
		Example: `  adit-relay audit --since 24h
  adit-relay audit --agent gpu-1 --event tunnel_opened`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := url.Values{}
			for k, v := range map[string]string{"agent": agent, "session": session, "event": event} {
				if v != "" {
					q.Set(k, v)
				}
			}
			if since != "" {
				if d, err := api.ParseDuration(since); err == nil {
					q.Set("since", time.Now().Add(-d.D()).UTC().Format(time.RFC3339))
				} else if _, err := time.Parse(time.RFC3339, since); err == nil {
					q.Set("since", since)
				} else {
					return usageError{fmt.Errorf("--since: %q is neither a duration such as 24h nor a time such as 2006-01-02T15:04:05Z", since)}
				}
			}
			c, err := dial(cmd)
			if err != nil {
				return err
			}
			if team != "" {
				id, err := findTeam(cmd.Context(), c, "--team", team)
				if err != nil {
					return err
				}
				q.Set("team", string(id))
			}
			body, err := c.Stream(cmd.Context(), http.MethodGet, "/v1/audit", q, nil)
			if err != nil {
				return fmt.Errorf("read the audit log: %w", err)
			}
			defer body.Close()
			return printLines(cmd.OutOrStdout(), body)
		},
	}
	socketFlag(cmd)
	f := cmd.Flags()
	teamFlag(cmd, &team)
	f.StringVar(&agent, "agent", "", "only this agent")
	f.StringVar(&session, "session", "", "only this tunnel")
	f.StringVar(&event, "event", "", "only this event")
	f.StringVar(&since, "since", "", "only from this time on (a time, or a duration back from now)")
	return cmd
}

// printLines prints documents of one line each.
func printLines(w io.Writer, body io.Reader) error {
	for in := bufio.NewReader(body); ; {
		line, err := in.ReadBytes('\n')
		if _, werr := w.Write(printable.JSON(line)); werr != nil {
			return werr
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read the audit log: %w", err)
		}
	}
}

func newStore() *cobra.Command {
	cmd := &cobra.Command{Use: "store", Short: "back up and restore the relay's state"}
	backup := &cobra.Command{
		Use: "backup FILE", Short: "write a consistent copy of the running relay's state to a file", Args: exactArgs(1),
		Example: "  adit-relay store backup /var/backups/adit-$(date +%F)",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := dial(cmd)
			if err != nil {
				return err
			}
			body, err := c.Stream(cmd.Context(), http.MethodGet, "/v1/store/backup", nil, nil)
			if err != nil {
				return fmt.Errorf("back up the store: %w", err)
			}
			defer body.Close()
			return writeWhole(args[0], body)
		},
	}
	socketFlag(backup)
	restore := &cobra.Command{
		Use: "restore FILE", Short: "fill the empty store of a stopped relay from a backup", Args: exactArgs(1),
		Long: `Restore reads a file that 'store backup' wrote and fills the store that the
configuration names. The relay must be stopped, and the store empty. The cluster
key (cluster_key_file) is no part of a backup: without it, old tunnel URLs are dead.`,
		Example: "  adit-relay store restore --config /etc/adit/relay.yaml /var/backups/adit-2026-01-31",
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			f, err := os.Open(args[0])
			if err != nil {
				return fmt.Errorf("open the backup: %w", err)
			}
			defer f.Close()
			log, _, err := logs.New(cmd.ErrOrStderr(), logs.Options{Level: cfg.Log.Level, Format: cfg.Log.Format})
			if err != nil {
				return err
			}
			sum, err := store.Restore(cmd.Context(), cfg.DataDir, f, log)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "restored %d records\n", sum.Records)
			return nil
		},
	}
	configFlags(restore)
	cmd.AddCommand(backup, restore, newMove())
	return cmd
}

// writeWhole writes a file that is either complete or not there.
func writeWhole(path string, r io.Reader) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".adit-backup-")
	if err != nil {
		return fmt.Errorf("make the backup file: %w", err)
	}
	defer os.Remove(f.Name()) // after the rename there is nothing left to remove
	_, err = io.Copy(f, r)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write the backup: %w", err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("name the backup: %w", err)
	}
	return nil
}
