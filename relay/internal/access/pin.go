package access

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"

	"golang.org/x/crypto/argon2"
)

// Of argon2id: what OWASP asks for at the least, since anybody may make the relay do it.
const (
	pinTime    = 2
	pinMemory  = 19 << 10 // KiB
	pinThreads = 1
	pinKey     = 32
	pinSalt    = 16
)

// HashPIN returns what is kept of a PIN: argon2id with its parameters, in the usual form.
func HashPIN(pin string) (string, error) {
	salt := make([]byte, pinSalt)
	if _, err := rand.Read(salt); err != nil {
		return "", fmt.Errorf("make a salt: %w", err)
	}
	sum := argon2.IDKey([]byte(pin), salt, pinTime, pinMemory, pinThreads, pinKey)
	text := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, pinMemory, pinTime, pinThreads, text(salt), text(sum)), nil
}
