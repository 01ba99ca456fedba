package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	"github.com/adit-tunnel/adit/relay/e2e/bench/lab"
	"github.com/adit-tunnel/adit/relay/e2e/bench/load"
	"github.com/adit-tunnel/adit/relay/e2e/bench/report"
)

// profiles begins to profile a target's processes for as long as a load will run, and
// returns what waits for the files.
func (o *options) profiles(ctx context.Context, k kase, t *lab.Target, row report.Row, s load.Spec) func() error {
	seconds := max(1, int((s.Warm + s.For).Seconds()))
	var wg sync.WaitGroup
	var mu sync.Mutex
	var all error
	for half, p := range t.Profiles {
		path := filepath.Join(o.profile, fmt.Sprintf("%s-%s-%s-%s.pprof", k.name, row.Name, t.Name, half))
		wg.Go(func() {
			err := fetch(ctx, p, fmt.Sprintf("/debug/pprof/profile?seconds=%d", seconds), path)
			mu.Lock()
			defer mu.Unlock()
			all = errors.Join(all, err)
		})
	}
	return func() error {
		wg.Wait()
		return all
	}
}

// fetch writes what an address in a place answers to a file.
func fetch(ctx context.Context, from lab.Profile, path, file string) error {
	tr := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		err = from.Place.Do(func() error {
			var d net.Dialer
			conn, err = d.DialContext(ctx, network, addr)
			return err
		})
		return conn, err
	}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+from.Addr+path, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s of %s answers %s", path, from.Addr, resp.Status)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, resp.Body)
	return errors.Join(err, f.Close())
}
