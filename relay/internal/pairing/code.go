package pairing

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/big"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// code is what a person types: short, since few are waited for and wrong ones are few.
type code string

// alphabet has one of each group of characters that are taken for each other: 24, so a
// code has 36 bits.
const (
	alphabet   = "ABCDEFHJKMNPQRTVWXY34679"
	codeLength = 8
)

// lookAlikes are what people type for what they saw.
var lookAlikes = strings.NewReplacer("8", "B", "0", "Q", "O", "Q", "U", "V", "G", "6")

func newCode() code {
	b := make([]byte, codeLength)
	most := big.NewInt(int64(len(alphabet)))
	for i := range b {
		n, _ := rand.Int(rand.Reader, most) // crypto/rand.Read never fails since Go 1.24
		b[i] = alphabet[n.Int64()]
	}
	return code(b)
}

// String is the code as it is shown.
func (c code) String() string { return string(c[:codeLength/2] + "-" + c[codeLength/2:]) }

// hash is what is stored. It is keyed, since all codes could be tried against a plain one.
func (c code) hash(key ident.ClusterKey) string {
	mac := hmac.New(sha256.New, key[:])
	mac.Write([]byte("pairing-code\n" + string(c)))
	return hex.EncodeToString(mac.Sum(nil))
}

// parseCode reads a code as people type it: in any case, with or without dashes and
// blanks, look-alikes taken for each other. It says whether that can be a code at all.
func parseCode(typed string) (code, bool) {
	if len(typed) > 64 {
		return "", false
	}
	typed = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) || unicode.Is(unicode.Dash, r) {
			return -1
		}
		return unicode.ToUpper(r)
	}, typed)
	typed = lookAlikes.Replace(typed)
	return code(typed), len(typed) == codeLength && strings.Trim(typed, alphabet) == ""
}

// readable says whether a text can be shown to people, and is short enough.
func readable(s string, most int) bool {
	return utf8.ValidString(s) && utf8.RuneCountInString(s) <= most && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

func outOfRange(format string, args ...any) *api.Problem {
	return api.NewProblem(api.CodeOutOfRange, fmt.Sprintf(format, args...))
}
