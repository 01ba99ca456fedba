package main

import (
	"bufio"
	"context"
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/adit-tunnel/adit/relay/e2e/bench/crowd"
	"github.com/adit-tunnel/adit/shared/ident"
)

// crowdDone answers each command of a crowd's process.
type crowdDone struct {
	N     int    `json:"n"`
	Again int64  `json:"again"` // how often an agent had to connect once more, so far
	Error string `json:"error,omitempty"`
}

// runCrowd is the process of simulated agents. It reads "grow N" (until there are N
// agents) and "churn PER-SECOND SECONDS", and answers each when it is done.
func runCrowd(ctx context.Context, url string) error {
	ctx, cancel := context.WithCancel(ctx)
	c := &crowd.Crowd{URL: url, Token: ident.Secret(os.Getenv("BENCH_CREDENTIAL"))}
	defer c.Wait()
	defer cancel()
	out := json.NewEncoder(os.Stdout)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		word := strings.Fields(in.Text())
		var n [2]int
		for i := range min(len(word)-1, len(n)) {
			var err error
			if n[i], err = strconv.Atoi(word[i+1]); err != nil {
				return err
			}
		}
		var done crowdDone
		var err error
		switch word[0] {
		case "grow":
			done.N, err = n[0], c.Grow(ctx, n[0])
		case "churn":
			done.N, err = c.Churn(ctx, n[0], time.Duration(n[1])*time.Second)
		}
		if err != nil {
			done.Error = err.Error()
		}
		done.Again = c.Again()
		if err := out.Encode(done); err != nil {
			return err
		}
	}
	return nil
}
