package enroll

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"

	"github.com/adit-tunnel/adit/shared/ident"
)

// headLength is the half of a token's body that is random: 100 bits. The other half
// is its seal, computed with the pool's key: it tells a token that was made here from
// a guess without asking the store, and says nothing of whether it is still good.
const headLength = 20

func newToken(key ident.ClusterKey) ident.Secret {
	head := ident.NewSecret(ident.PrefixEnroll)[:len(ident.PrefixEnroll)+headLength]
	return head + ident.Secret(seal(key, head.Reveal()))
}

func sealed(key ident.ClusterKey, token ident.Secret) bool {
	const n = len(ident.PrefixEnroll) + headLength
	if len(token) < n {
		return false
	}
	return hmac.Equal([]byte(token[n:]), []byte(seal(key, token[:n].Reveal())))
}

func seal(key ident.ClusterKey, head string) string {
	mac := hmac.New(sha256.New, key[:])
	mac.Write([]byte("enrolment-token\n" + head))
	return sealEncoding.EncodeToString(mac.Sum(nil))[:headLength]
}

var sealEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
