// Command adit-agent keeps a machine reachable through an Adit relay.
package main

import (
	"context"
	"os"

	"github.com/adit-tunnel/adit/agent/internal/cli"
)

func main() { os.Exit(cli.Main(context.Background(), os.Args[1:])) }
