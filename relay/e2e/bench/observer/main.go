// Command observer is a second relay's view of a relay's store, for the bench: the
// index in memory that its watch feeds, with nothing around it. What the index costs,
// and what a change of it costs, is what this process uses. It reads commands on its
// standard input and answers each with a line of JSON.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/adit-tunnel/adit/relay/internal/store"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := observe(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "observer:", err)
		os.Exit(1)
	}
}

// report answers the command "report".
type report struct {
	Heap    uint64  `json:"heap"` // bytes alive
	Tunnels int     `json:"tunnels"`
	Events  int64   `json:"events"` // changes seen so far
	CPU     float64 `json:"cpu_s"`
}

func observe(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("usage: observer ENDPOINT")
	}
	s, err := store.New(store.Config{
		Endpoints: args, Relay: store.RelayRecord{ID: "observer", Version: "bench", Started: time.Now()},
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	var events atomic.Int64
	changes := s.Subscribe(1 << 16)
	defer changes.Close()
	go func() {
		for range changes.C() {
			events.Add(1)
		}
	}()
	if err := s.Ready(ctx); err != nil {
		return err
	}
	commands := bufio.NewScanner(os.Stdin)
	out := json.NewEncoder(os.Stdout)
	for commands.Scan() {
		if err := s.CatchUp(ctx); err != nil {
			return err
		}
		r := report{Events: events.Load()}
		for range s.AllTunnels() {
			r.Tunnels++
		}
		var ru syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
			return err
		}
		r.CPU = time.Duration(ru.Utime.Nano() + ru.Stime.Nano()).Seconds()
		if commands.Text() == "memory" {
			var m runtime.MemStats
			runtime.GC()
			runtime.GC() // what had a finalizer goes with the second
			runtime.ReadMemStats(&m)
			r.Heap = m.HeapAlloc
		}
		if err := out.Encode(r); err != nil {
			return err
		}
	}
	cancel()
	return errors.Join(commands.Err(), <-ended)
}
