package creds

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"
)

// keyFileEvery is how often the key file is looked at.
const keyFileEvery = 5 * time.Second

// keyFile is a key set in a file that the operator replaces when keys rotate.
type keyFile struct {
	path string
	log  *slog.Logger
	m    *metrics

	mu   sync.RWMutex
	keys keySet
	seen os.FileInfo // of the content that was read last, good or bad
}

func newKeyFile(path string, log *slog.Logger, m *metrics) (*keyFile, error) {
	f := &keyFile{path: path, log: log, m: m}
	return f, f.load()
}

func (f *keyFile) current() keySet {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.keys
}

// refresh does nothing: run and Reload notice a change, a caller's token does not
// make the relay read files.
func (f *keyFile) refresh() error { return errLimited }

// load reads the file. A bad one leaves the keys as they are.
func (f *keyFile) load() (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("auth.jwt.public_key_file: %w", err)
			f.m.refreshes.WithLabelValues("file", "error").Inc()
			return
		}
		f.m.refreshes.WithLabelValues("file", "ok").Inc()
	}()
	file, err := os.Open(f.path)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	b, err := io.ReadAll(io.LimitReader(file, maxKeysBytes+1))
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = info
	if len(b) > maxKeysBytes {
		return fmt.Errorf("%s is longer than %d bytes", f.path, maxKeysBytes)
	}
	keys, err := parseKeyFile(b)
	if err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	f.keys = keys
	return nil
}

// changed says whether the file is another one than was read, following links.
func (f *keyFile) changed() bool {
	info, err := os.Stat(f.path)
	if err != nil {
		return false // being replaced, or gone: the keys stay until there is something to read
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.seen == nil || !os.SameFile(f.seen, info) || !info.ModTime().Equal(f.seen.ModTime()) || info.Size() != f.seen.Size()
}

// run reloads the file when it changes, until ctx ends.
func (f *keyFile) run(ctx context.Context) {
	tick := time.NewTicker(keyFileEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !f.changed() {
			continue
		}
		if err := f.load(); err != nil {
			f.log.Error("new key file refused, the old keys stay in use", "error", err)
			continue
		}
		f.log.Info("key file reloaded", "path", f.path, "keys", len(f.current()))
	}
}
