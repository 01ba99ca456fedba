package relay

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/adit-tunnel/adit/shared/ident"
)

// loadClusterKey reads the key behind the access tokens. A relay with a store of
// its own makes the key at its first start; in a pool the operator gives every
// relay the same file, since a second key would silently make other URLs.
func loadClusterKey(path string, create bool) (ident.ClusterKey, error) {
	var key ident.ClusterKey
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if !create {
			return key, fmt.Errorf("there is no cluster key at %s: the relays of a pool share one; copy it from another relay, or make it once with: openssl rand -hex 32", path)
		}
		return makeClusterKey(path)
	}
	if err != nil {
		return key, fmt.Errorf("read the cluster key: %w", err)
	}
	raw, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(raw) != len(key) {
		return key, fmt.Errorf("the cluster key in %s is not 64 hexadecimal digits", path)
	}
	copy(key[:], raw)
	return key, nil
}

func makeClusterKey(path string) (ident.ClusterKey, error) {
	var key ident.ClusterKey
	_, _ = rand.Read(key[:]) // crypto/rand.Read never fails since Go 1.24
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return key, fmt.Errorf("make directory of the cluster key: %w", err)
	}
	f, err := os.CreateTemp(dir, ".cluster-key-") // mode 0600
	if err != nil {
		return key, fmt.Errorf("make the cluster key: %w", err)
	}
	defer os.Remove(f.Name()) // after the rename there is nothing left to remove
	_, err = f.WriteString(hex.EncodeToString(key[:]) + "\n")
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return key, fmt.Errorf("write the cluster key: %w", err)
	}
	return key, nil
}

// fingerprint tells keys apart without telling the key.
func fingerprint(key ident.ClusterKey) string {
	sum := sha256.Sum256(append([]byte("adit cluster key\n"), key[:]...))
	return hex.EncodeToString(sum[:8])
}
