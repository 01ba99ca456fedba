package certs

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/caddyserver/certmagic"

	"github.com/adit-tunnel/adit/relay/internal/store"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Files is what the storage needs of the store.
type Files interface {
	PutFile(ctx context.Context, name string, data []byte) error
	File(ctx context.Context, name string) (store.FileRecord, error)
	Files(ctx context.Context, dir string) ([]string, error)
	DeleteFiles(ctx context.Context, name string) error
	Lock(ctx context.Context, name string) (unlock func(context.Context) error, err error)
}

// below is the directory of everything that ACME keeps.
const below = "acme/"

// storage is certmagic's, over the store that the relays of a pool share. Contents
// are sealed with a key made of the cluster key: neither the store nor its backups
// give away an account or a certificate's key. Each is bound to its name, so that
// whoever can write to the store cannot swap two of them.
type storage struct {
	files Files
	aead  cipher.AEAD

	mu    sync.Mutex
	locks map[string]func(context.Context) error
}

var _ certmagic.Storage = (*storage)(nil)

func newStorage(files Files, key ident.ClusterKey) *storage {
	secret, err := hkdf.Key(sha256.New, key[:], nil, "adit acme storage v1", 32)
	if err != nil {
		panic(err) // only for lengths that are not ours
	}
	block, err := aes.NewCipher(secret)
	if err != nil {
		panic(err) // only for other key lengths
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		panic(err) // only for other ciphers
	}
	return &storage{files: files, aead: aead, locks: map[string]func(context.Context) error{}}
}

func (s *storage) seal(name string, data []byte) []byte {
	nonce := make([]byte, s.aead.NonceSize(), s.aead.NonceSize()+len(data)+s.aead.Overhead())
	_, _ = rand.Read(nonce) // crypto/rand.Read never fails since Go 1.24
	return s.aead.Seal(nonce, nonce, data, []byte(name))
}

func (s *storage) open(name string, sealed []byte) ([]byte, error) {
	n := s.aead.NonceSize()
	if len(sealed) < n {
		return nil, fmt.Errorf("open %s: it is not sealed", name)
	}
	data, err := s.aead.Open(nil, sealed[:n], sealed[n:], []byte(name))
	if err != nil {
		return nil, fmt.Errorf("open %s: it was sealed with another cluster key or under another name: %w", name, err)
	}
	return data, nil
}

// Store is part of certmagic.Storage.
func (s *storage) Store(ctx context.Context, key string, value []byte) error {
	return s.files.PutFile(ctx, below+key, s.seal(key, value))
}

// Load is part of certmagic.Storage.
func (s *storage) Load(ctx context.Context, key string) ([]byte, error) {
	r, err := s.files.File(ctx, below+key)
	if err != nil {
		return nil, missing(err)
	}
	return s.open(key, r.Data)
}

// missing gives an error the name that certmagic asks for.
func missing(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return err
}

// Delete is part of certmagic.Storage.
func (s *storage) Delete(ctx context.Context, key string) error {
	return s.files.DeleteFiles(ctx, below+key)
}

// Exists is part of certmagic.Storage.
func (s *storage) Exists(ctx context.Context, key string) bool {
	_, err := s.Stat(ctx, key)
	return err == nil
}

// List is part of certmagic.Storage.
func (s *storage) List(ctx context.Context, dir string, recursive bool) ([]string, error) {
	names, err := s.files.Files(ctx, path.Join(below, dir))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, name := range names {
		key := strings.TrimPrefix(name, below)
		rest := strings.TrimPrefix(strings.TrimPrefix(key, dir), "/")
		first, _, deeper := strings.Cut(rest, "/")
		if deeper && !recursive {
			key = path.Join(dir, first)
		}
		if !slices.Contains(out, key) {
			out = append(out, key)
		}
	}
	if len(out) == 0 {
		return nil, fs.ErrNotExist
	}
	return out, nil
}

// Stat is part of certmagic.Storage.
func (s *storage) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	r, err := s.files.File(ctx, below+key)
	if err == nil {
		return certmagic.KeyInfo{Key: key, Modified: r.Modified, Size: int64(len(r.Data) - s.aead.NonceSize() - s.aead.Overhead()), IsTerminal: true}, nil
	}
	if !errors.Is(err, store.ErrNotFound) {
		return certmagic.KeyInfo{}, err
	}
	names, lerr := s.files.Files(ctx, below+key)
	if lerr != nil {
		return certmagic.KeyInfo{}, lerr
	}
	if len(names) == 0 {
		return certmagic.KeyInfo{}, missing(err)
	}
	return certmagic.KeyInfo{Key: key}, nil
}

// Lock is part of certmagic.Storage.
func (s *storage) Lock(ctx context.Context, name string) error {
	unlock, err := s.files.Lock(ctx, below+name)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.locks[name] = unlock
	return nil
}

// Unlock is part of certmagic.Storage.
func (s *storage) Unlock(ctx context.Context, name string) error {
	s.mu.Lock()
	unlock := s.locks[name]
	delete(s.locks, name)
	s.mu.Unlock()
	if unlock == nil {
		return fmt.Errorf("unlock %s: it is not locked", name)
	}
	return unlock(ctx)
}
