// Command etcdmember is an etcd for tests, where Debian's is too old and nothing may
// be downloaded: one member of a cluster on loopback, and what a test asks of the
// cluster. It never compacts, so that the history of every key can be read.
//
//	etcdmember run NAME DATADIR CLIENT-URL PEER-URL NAME=PEER-URL,NAME=PEER-URL,…
//	etcdmember leader ENDPOINTS     prints the leader's name
//	etcdmember history ENDPOINTS PREFIX   prints every version of every key, one JSON a line
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := do(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "etcdmember:", err)
		os.Exit(1)
	}
}

func do(ctx context.Context, args []string) error {
	switch {
	case len(args) == 6 && args[0] == "run":
		return run(ctx, args[1], args[2], args[3], args[4], args[5])
	case len(args) == 2 && args[0] == "leader":
		return leader(ctx, strings.Split(args[1], ","))
	case len(args) == 3 && args[0] == "history":
		return history(ctx, strings.Split(args[1], ","), args[2])
	}
	return errors.New("usage: run NAME DATADIR CLIENT-URL PEER-URL CLUSTER | leader ENDPOINTS | history ENDPOINTS PREFIX")
}

func run(ctx context.Context, name, dir, client, peer, cluster string) error {
	clientURL, err := url.Parse(client)
	if err != nil {
		return err
	}
	peerURL, err := url.Parse(peer)
	if err != nil {
		return err
	}
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir = name, dir
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*clientURL}, []url.URL{*clientURL}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*peerURL}, []url.URL{*peerURL}
	cfg.InitialCluster, cfg.InitialClusterToken = cluster, "adit-e2e"
	cfg.LogLevel, cfg.LogOutputs = "warn", []string{"stderr"}
	// Patient enough for a machine that does many things at once.
	cfg.TickMs, cfg.ElectionMs = 100, 1000
	etcd, err := embed.StartEtcd(cfg)
	if err != nil {
		return err
	}
	defer etcd.Close()
	select {
	case <-ctx.Done():
		return nil
	case err := <-etcd.Err():
		return err
	}
}

func dial(endpoints []string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 5 * time.Second})
}

func leader(ctx context.Context, endpoints []string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := dial(endpoints)
	if err != nil {
		return err
	}
	defer c.Close()
	list, err := c.MemberList(ctx) // linearizable: there is a quorum
	if err != nil {
		return err
	}
	for _, e := range endpoints {
		st, err := status(ctx, c, e)
		if err != nil || st.Leader == 0 {
			continue // a member that is down, or knows of none
		}
		for _, m := range list.Members {
			if m.ID == st.Leader {
				fmt.Println(m.Name)
				return nil
			}
		}
	}
	return errors.New("there is no leader")
}

func status(ctx context.Context, c *clientv3.Client, endpoint string) (*clientv3.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return c.Status(ctx, endpoint)
}

// version is one line of history. Value is what was written; without one the key
// was deleted.
type version struct {
	Key      string          `json:"key"`
	Revision int64           `json:"revision"`
	Value    json.RawMessage `json:"value,omitempty"`
}

// history prints what happened below a prefix since the cluster began, up to now.
func history(ctx context.Context, endpoints []string, prefix string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	c, err := dial(endpoints)
	if err != nil {
		return err
	}
	defer c.Close()
	now, err := c.Get(ctx, "\x00", clientv3.WithLimit(1)) // linearizable
	if err != nil {
		return err
	}
	last := now.Header.Revision
	out := json.NewEncoder(os.Stdout)
	watch := c.Watch(clientv3.WithRequireLeader(ctx), prefix, clientv3.WithPrefix(), clientv3.WithRev(1), clientv3.WithFragment())
	progress := time.NewTicker(200 * time.Millisecond) // also without an event at the end
	defer progress.Stop()
	for {
		select {
		case <-progress.C:
			if err := c.RequestProgress(clientv3.WithRequireLeader(ctx)); err != nil {
				return err
			}
		case resp, ok := <-watch:
			if err := resp.Err(); err != nil {
				return err
			}
			if !ok {
				return context.Cause(ctx)
			}
			for _, ev := range resp.Events {
				v := version{Key: string(ev.Kv.Key), Revision: ev.Kv.ModRevision}
				if v.Revision > last {
					return nil
				}
				if ev.Type == clientv3.EventTypePut {
					v.Value = ev.Kv.Value
				}
				if err := out.Encode(v); err != nil {
					return err
				}
			}
			if resp.Header.Revision >= last && len(resp.Events) == 0 {
				return nil
			}
		}
	}
}
