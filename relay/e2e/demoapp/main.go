// Command demoapp is a small web app in the manner of ComfyUI, for scripts/demo
// and the end-to-end tests: a page with absolute and relative requests, a
// WebSocket with progress, an image, an upload, and ComfyUI's checks of Host and
// Origin. It owns nothing but its memory, and knows nothing of Adit.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	listen := flag.String("listen", "127.0.0.1:8188", "`address` to listen on; port 0 takes a free one")
	flag.Parse()
	if err := run(ctx, *listen, os.Stdout, slog.New(slog.NewTextHandler(os.Stderr, nil))); err != nil {
		fmt.Fprintln(os.Stderr, "demoapp:", err)
		stop()
		os.Exit(1)
	}
}

// run serves until ctx ends. It prints its address on one line once it listens.
func run(ctx context.Context, listen string, out io.Writer, log *slog.Logger) error {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", listen)
	if err != nil {
		return err
	}
	a := newApp(log)
	srv := &http.Server{Handler: originOnly(log, a.routes()), ReadHeaderTimeout: 10 * time.Second}
	srv.RegisterOnShutdown(a.close) // Shutdown does not know of WebSockets
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	if _, err := fmt.Fprintf(out, "listening on http://%s\n", ln.Addr()); err != nil {
		return errors.Join(err, srv.Close(), <-served)
	}
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err = srv.Shutdown(end)
	if serr := <-served; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	a.wait()
	return err
}
