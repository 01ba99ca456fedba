package peers

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"github.com/adit-tunnel/adit/shared/ident"
)

// protocol is what relays speak to each other (ALPN): a link on TLS, nothing around.
const protocol = "adit.peer.v1"

// Files are the PEM files of mutual TLS between relays.
type Files struct {
	CA   string // certificates of the pool's authority
	Cert string // this relay's, which names it (DNS name = relay id), for both roles
	Key  string
}

// Reload reads the files again. Links that are up stay; on an error the old
// certificates do.
func (p *Peers) Reload() error {
	pem, err := os.ReadFile(p.cfg.TLS.CA)
	if err != nil {
		return fmt.Errorf("peer.tls.ca_file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return fmt.Errorf("peer.tls.ca_file: %s holds no certificate", p.cfg.TLS.CA)
	}
	cert, err := tls.LoadX509KeyPair(p.cfg.TLS.Cert, p.cfg.TLS.Key)
	if err != nil {
		return fmt.Errorf("peer.tls: read cert_file and key_file: %w", err)
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return fmt.Errorf("peer.tls.cert_file: %w", err)
	}
	if err := names(leaf, p.cfg.Relay); err != nil {
		return fmt.Errorf("peer.tls.cert_file: %w", err)
	}
	p.tls.Store(&tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{protocol}, Certificates: []tls.Certificate{cert},
		RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
	})
	return nil
}

// names says whether a certificate is a relay's.
func names(cert *x509.Certificate, id ident.RelayID) error {
	if err := cert.VerifyHostname(string(id)); err != nil {
		return fmt.Errorf("the certificate does not name relay %q: %w", id, err)
	}
	return nil
}

// leaf returns the certificate of the other end of a completed handshake.
func leaf(c *tls.Conn) (*x509.Certificate, error) {
	st := c.ConnectionState()
	if st.NegotiatedProtocol != protocol {
		return nil, fmt.Errorf("the other end does not speak %s", protocol)
	}
	if len(st.PeerCertificates) == 0 {
		return nil, errors.New("the other end showed no certificate")
	}
	return st.PeerCertificates[0], nil
}
