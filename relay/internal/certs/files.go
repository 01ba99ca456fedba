package certs

import (
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
)

// pair is a certificate in two files.
type pair struct {
	cert, key string
	current   atomic.Pointer[tls.Certificate] // never nil after the first read

	mu   sync.Mutex
	seen [sha256.Size]byte // what was read last, good or not
	bad  error             // what was wrong with it
}

// read reads the files and takes them on when they are good.
func (p *pair) read() (bool, error) { return p.refresh(true) }

// refresh reads the files and takes them on when they changed and are good. It says
// whether they differ from what was read before. A certificate and a key that do not
// belong together are bad: often the second file is just being written, and the next
// look finds both.
func (p *pair) refresh(always bool) (changed bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	chain, cerr := os.ReadFile(p.cert)
	key, kerr := os.ReadFile(p.key)
	sum := sha256.New()
	fmt.Fprintf(sum, "%d %v %v\n", len(chain), cerr, kerr)
	sum.Write(chain)
	sum.Write(key)
	was := p.seen
	sum.Sum(p.seen[:0])
	changed = p.seen != was
	if !changed && !always {
		return false, p.bad
	}
	p.bad = p.load(chain, key, cerr, kerr)
	return changed, p.bad
}

func (p *pair) load(chain, key []byte, cerr, kerr error) error {
	for _, err := range []error{cerr, kerr} {
		if err != nil {
			return fmt.Errorf("read the certificate of the public listener: %w", err)
		}
	}
	cert, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return fmt.Errorf("read the certificate of the public listener from %s and %s: %w", p.cert, p.key, err)
	}
	p.current.Store(&cert)
	return nil
}

// fault says what is wrong with the files as they are now.
func (p *pair) fault() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bad == nil {
		return ""
	}
	return p.bad.Error()
}
