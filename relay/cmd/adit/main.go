// Command adit is the user's side of Adit: it opens, lists, uses and closes
// tunnels to GPU machines through a relay.
package main

import (
	"context"
	"os"

	"github.com/adit-tunnel/adit/relay/internal/aditcli"
)

func main() { os.Exit(aditcli.Main(context.Background(), os.Args[1:])) }
