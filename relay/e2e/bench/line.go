package main

import (
	"context"
	"fmt"
	"os"

	"github.com/adit-tunnel/adit/relay/e2e/bench/lab"
	"github.com/adit-tunnel/adit/shared/testkit/wan"
)

// rate of the line of every case that has one, in bits a second.
const rate = 1e9

// line puts a line between the lab's near and far. It ends with end, after what runs
// in the lab did.
func (o *options) line(ctx context.Context, k kase, l *lab.Lab) (end func(), err error) {
	net := wan.NewNet(wan.Line{RTT: k.rtt, Loss: k.loss, Rate: rate, Congestion: o.congestion})
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan error, 1)
	go func() { ended <- net.Run(ctx) }()
	select {
	case <-net.Ready():
	case err := <-ended:
		cancel()
		return nil, err
	}
	l.Near, l.Far = net.Near, net.Far
	return func() {
		cancel()
		if err := <-ended; err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		carried, lost, dropped := net.Stats()
		fmt.Fprintf(os.Stderr, "%s: %d segments carried, %d lost, %d dropped by a full queue\n", k.name, carried, lost, dropped)
	}, nil
}
