package certs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
)

// memory is a store's files in memory.
type memory struct{ data map[string][]byte }

func (m *memory) PutFile(_ context.Context, name string, data []byte) error {
	m.data[name] = data
	return nil
}

func (m *memory) File(_ context.Context, name string) (store.FileRecord, error) {
	d, ok := m.data[name]
	if !ok {
		return store.FileRecord{}, fmt.Errorf("read: %w", store.ErrNotFound)
	}
	return store.FileRecord{Data: d}, nil
}

func (m *memory) Files(_ context.Context, dir string) ([]string, error) {
	names := slices.Sorted(maps.Keys(m.data))
	return slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, dir+"/") }), nil
}

func (m *memory) DeleteFiles(_ context.Context, name string) error {
	maps.DeleteFunc(m.data, func(n string, _ []byte) bool { return n == name || strings.HasPrefix(n, name+"/") })
	return nil
}

func (m *memory) Lock(context.Context, string) (func(context.Context) error, error) {
	return func(context.Context) error { return nil }, nil
}

func TestStorageIsSealedAndBoundToItsNames(t *testing.T) {
	m := &memory{data: map[string][]byte{}}
	s := newStorage(m, ident.ClusterKey{1})
	ctx := t.Context()
	for key, value := range map[string]string{"certs/a/a.key": "-----BEGIN PRIVATE KEY-----", "certs/a/a.crt": "chain", "certs/ab/ab.crt": "other"} {
		if err := s.Store(ctx, key, []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.Load(ctx, "certs/a/a.key"); err != nil || string(got) != "-----BEGIN PRIVATE KEY-----" {
		t.Errorf("what was stored reads %q, %v", got, err)
	}
	for name, data := range m.data {
		if bytes.Contains(data, []byte("PRIVATE")) || bytes.Contains(data, []byte("chain")) {
			t.Errorf("%s is not sealed", name)
		}
	}
	if info, err := s.Stat(ctx, "certs/a/a.crt"); err != nil || info.Size != 5 || !info.IsTerminal {
		t.Errorf("a file's size is that of its contents: %+v, %v", info, err)
	}
	if info, err := s.Stat(ctx, "certs/a"); err != nil || info.IsTerminal {
		t.Errorf("a directory is there because of what is below it: %+v, %v", info, err)
	}
	if got, err := s.List(ctx, "certs", false); err != nil || !slices.Equal(got, []string{"certs/a", "certs/ab"}) {
		t.Errorf("the directory lists %v, %v", got, err)
	}
	if got, err := s.List(ctx, "certs/a", true); err != nil || !slices.Equal(got, []string{"certs/a/a.crt", "certs/a/a.key"}) {
		t.Errorf("the directory lists %v, %v", got, err)
	}
	if err := s.Delete(ctx, "certs/a"); err != nil || s.Exists(ctx, "certs/a/a.crt") || !s.Exists(ctx, "certs/ab/ab.crt") {
		t.Errorf("a directory is deleted whole, and its neighbour is not: %v", err)
	}
	if _, err := s.Load(ctx, "certs/a/a.crt"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is not there is said as certmagic asks: %v", err)
	}

	m.data["acme/certs/x.crt"] = m.data["acme/certs/ab/ab.crt"]
	if _, err := s.Load(ctx, "certs/x.crt"); err == nil {
		t.Error("a value under another name does not open")
	}
	if _, err := newStorage(m, ident.ClusterKey{2}).Load(ctx, "certs/ab/ab.crt"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("another cluster key opens nothing, and does not take it for missing: %v", err)
	}
	m.data["acme/short"] = []byte("x")
	if _, err := s.Load(ctx, "short"); err == nil {
		t.Error("what is too short to be sealed does not open")
	}
}

func TestPauses(t *testing.T) {
	for n := 1; n < 20; n++ {
		d := pauseAfter(errors.New("connection refused"), n)
		if d < 5e9 || d > 150e9 {
			t.Errorf("an authority that cannot be reached is asked again after %s", d)
		}
	}
}
