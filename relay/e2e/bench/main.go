// Command bench measures Adit beside what it is compared with, and prints ratios.
// scripts/bench builds it and what it measures; its --help says all else. It owns the
// processes that it starts, and judges speed only in words: no test fails on a time.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/adit-tunnel/adit/relay/e2e/bench/load"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := do(ctx, os.Args[1:])
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func do(ctx context.Context, args []string) error {
	if len(args) == 2 { // the bench's own processes
		switch args[0] {
		case "origin":
			return runOrigin(ctx, args[1])
		case "load":
			return runLoad(ctx, args[1])
		case "crowd":
			return runCrowd(ctx, args[1])
		}
	}
	o, err := parse(args)
	if err != nil {
		return err
	}
	return o.run(ctx)
}

// runLoad puts one load on and prints its result.
func runLoad(ctx context.Context, doc string) error {
	var s load.Spec
	if err := json.Unmarshal([]byte(doc), &s); err != nil {
		return err
	}
	r, err := load.Run(ctx, s)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// runOrigin is the app behind every target.
func runOrigin(ctx context.Context, doc string) error {
	var at struct{ Listen, Counter string }
	if err := json.Unmarshal([]byte(doc), &at); err != nil {
		return err
	}
	var lc net.ListenConfig
	web, err := lc.Listen(ctx, "tcp", at.Listen)
	if err != nil {
		return err
	}
	counter, err := load.ListenCounter(ctx, at.Counter)
	if err != nil {
		return errors.Join(err, web.Close())
	}
	var o load.Origin
	return o.Serve(ctx, web, counter)
}
