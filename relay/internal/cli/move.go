package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/adit-tunnel/adit/relay"
	"github.com/adit-tunnel/adit/shared/logs"
)

func newMove() *cobra.Command {
	cmd := &cobra.Command{
		Use: "move", Short: "carry the store of a stopped relay to an external etcd", Args: exactArgs(0),
		Long: `Move carries the store inside a relay, in data_dir, to the external etcd that
store.endpoints names: the first step from one relay to several. The relay must be
stopped and the etcd hold nothing of Adit's. Everything is read back before the old
store is put aside as data_dir/etcd.moved. The cluster key (cluster_key_file) is not
in the store: give every relay of the pool the same file.`,
		Example: `  systemctl stop adit-relay
  adit-relay store move --config /etc/adit/relay.yaml   # with store.endpoints set
  systemctl start adit-relay`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			log, _, err := logs.New(cmd.ErrOrStderr(), logs.Options{Level: cfg.Log.Level, Format: cfg.Log.Format})
			if err != nil {
				return err
			}
			n, err := relay.MoveStore(cmd.Context(), cfg, log)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "moved %d records\n", n)
			return nil
		},
	}
	configFlags(cmd)
	return cmd
}
