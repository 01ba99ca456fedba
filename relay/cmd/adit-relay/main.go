// Command adit-relay is the public half of Adit: it maps tunnels to agents and
// proxies their users' requests. See adit-relay --help.
package main

import (
	"context"
	"os"

	"github.com/adit-tunnel/adit/relay/internal/cli"
)

func main() { os.Exit(cli.Main(context.Background(), os.Args[1:])) }
