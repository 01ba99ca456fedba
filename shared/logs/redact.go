package logs

import (
	"strings"

	"github.com/adit-tunnel/adit/shared/ident"
)

const mark = "[redacted]"

// Redact cuts secrets out of a text and leaves the rest as it is:
//
//   - Adit's own secrets (sk-…, dk-…, ak-…, adm-…, lt-…, en-…, tc-…, tr-…, si-…, bt-…, inv-…,
//     pc-…) keep their prefix;
//   - a tunnel's segment, in a path or a host name, keeps its session id;
//   - what follows Bearer, Basic and the like, and JSON web tokens;
//   - the values of Authorization and Cookie headers, as HTTP, Go or JSON print them;
//   - the user and password of a URL;
//   - values of names such as password=, access_token= or "secret":.
//
// It reads a text once, without regular expressions: time is linear in its length.
func Redact(s string) string {
	if !suspicious(s) {
		return s
	}
	r := redactor{s: s}
	for i := 0; i < len(s); {
		if i < r.done {
			i = r.done
			continue
		}
		switch s[i] {
		case '-', '%':
			r.token(i)
		case ' ':
			r.scheme(i)
		case ':':
			r.colon(i)
		case '=':
			r.assignment(i)
		case 'J':
			r.jwt(i)
		}
		i++
	}
	if r.out == nil {
		return s
	}
	return string(append(r.out, s[r.done:]...))
}

// suspicious says cheaply that a text may hold something to cut. A short text
// without one of these marks is most of a log.
func suspicious(s string) bool {
	return len(s) >= 6 && strings.ContainsAny(s, "-:= %J")
}

// redactor holds what was read so far: s[:done] stands in out, if anything was cut.
type redactor struct {
	s    string
	out  []byte
	done int
}

// cut replaces s[from:to] with the mark.
func (r *redactor) cut(from, to int) {
	if from < r.done || from >= to {
		return
	}
	if r.out == nil {
		r.out = make([]byte, 0, len(r.s))
	}
	r.out = append(append(r.out, r.s[r.done:from]...), mark...)
	r.done = to
}

const (
	// secretRun is how many letters or digits after a prefix make a secret. What
	// credentials show of themselves (12 characters, prefix included) is below it.
	secretRun = 16
	// secretWhole is the length of a secret of ident.NewSecret: so many are cut even
	// inside a longer word.
	secretWhole = 40
	// tokenRun is how many base32 letters after a session id make an access token
	// (26 when whole).
	tokenRun = 16
)

var prefixes = []string{
	strings.TrimSuffix(ident.PrefixIntegration, "-"), strings.TrimSuffix(ident.PrefixDevice, "-"),
	strings.TrimSuffix(ident.PrefixAgent, "-"), strings.TrimSuffix(ident.PrefixAdmin, "-"),
	strings.TrimSuffix(ident.PrefixLease, "-"), strings.TrimSuffix(ident.PrefixEnroll, "-"),
	strings.TrimSuffix(ident.PrefixCode, "-"), strings.TrimSuffix(ident.PrefixRight, "-"),
	strings.TrimSuffix(ident.PrefixSignIn, "-"), strings.TrimSuffix(ident.PrefixBrowser, "-"),
	strings.TrimSuffix(ident.PrefixInvite, "-"), strings.TrimSuffix(ident.PrefixPairing, "-"),
}

// token looks around a hyphen, or one that is written %2d, for a secret or segment.
func (r *redactor) token(i int) {
	next := i + 1
	if r.s[i] == '%' {
		if len(r.s) < i+3 || r.s[i+1] != '2' || lower(r.s[i+2]) != 'd' {
			return
		}
		next = i + 3
	}
	end := next
	for end < len(r.s) && isAlnum(r.s[end]) {
		end++
	}
	if end-next >= tokenRun && i >= 32 && isHex(r.s[i-32:i]) {
		r.cut(next, end)
		return
	}
	if end-next < secretRun {
		return
	}
	for _, p := range prefixes {
		from := i - len(p)
		if from < 0 || !strings.EqualFold(r.s[from:i], p) {
			continue
		}
		if end-next >= secretWhole || from == 0 || !isAlnum(r.s[from-1]) {
			r.cut(next, end)
			return
		}
	}
}

var schemes = []string{"bearer", "basic", "digest", "negotiate"}

// scheme looks before a space for an authentication scheme, and cuts the
// credentials behind it.
func (r *redactor) scheme(i int) {
	word := r.wordBefore(i)
	if word == "" || !oneOf(word, schemes) {
		return
	}
	from := i
	for from < len(r.s) && r.s[from] == ' ' {
		from++
	}
	to, plain := from, true
	for to < len(r.s) && !isDelimiter(r.s[to]) {
		plain = plain && 'a' <= r.s[to] && r.s[to] <= 'z'
		to++
	}
	// "bearer token expired" is prose, "Bearer 7f3a…" is none.
	if to-from < 6 || plain && to-from < 2*secretRun {
		return
	}
	r.cut(from, to)
}

var headers = []string{"authorization", "proxy-authorization", "cookie", "set-cookie"}

// colon looks for a header's name, a URL's user, or a JSON member.
func (r *redactor) colon(i int) {
	if strings.HasPrefix(r.s[i:], "://") {
		r.userinfo(i + 3)
		return
	}
	nameEnd, quoted := i, false
	if i > 0 && r.s[i-1] == '"' {
		nameEnd, quoted = i-1, true
		if nameEnd > 0 && r.s[nameEnd-1] == '\\' {
			nameEnd-- // JSON inside a quoted text
		}
	}
	word := r.wordBefore(nameEnd)
	if word == "" {
		return
	}
	from := i + 1
	for from < len(r.s) && r.s[from] == ' ' {
		from++
	}
	switch {
	case oneOf(word, headers):
		r.cut(from, r.headerEnd(from))
	case quoted && isSecretName(word):
		r.cut(from, r.headerEnd(from))
	case from == i+1 && isSecretName(word):
		r.cut(from, r.valueEnd(from)) // as fmt prints maps and structs; prose has a space
	}
}

// headerEnd finds where a header's value ends: at the bracket or quote that
// matches the one it begins with, else at the end of the line.
func (r *redactor) headerEnd(from int) int {
	if from >= len(r.s) {
		return from
	}
	rest := r.s[from:]
	switch {
	case rest[0] == '[':
		if n := strings.IndexByte(rest, ']'); n >= 0 {
			return from + n + 1
		}
	case rest[0] == '"' || strings.HasPrefix(rest, `\"`):
		quote := rest[:strings.IndexByte(rest, '"')+1]
		for n := len(quote); n < len(rest); n++ {
			if strings.HasPrefix(rest[n:], quote) {
				return from + n + len(quote)
			}
			if rest[n] == '\\' {
				n++ // an escaped quote does not end the value
			}
		}
	}
	if n := strings.IndexAny(rest, "\r\n"); n >= 0 {
		return from + n
	}
	return len(r.s)
}

// userinfo cuts "user:password@" at the beginning of a URL's authority.
func (r *redactor) userinfo(from int) {
	at := -1
	for i := from; i < len(r.s); i++ {
		switch c := r.s[i]; {
		case c == '@':
			at = i
		case c == '/' || c == '?' || c == '#' || isDelimiter(c):
			r.cut(from, at)
			return
		}
	}
	r.cut(from, at)
}

// assignment cuts the value of name=value where the name is a secret's.
func (r *redactor) assignment(i int) {
	if word := r.wordBefore(i); word == "" || !isSecretName(word) {
		return
	}
	if i+1 < len(r.s) && r.s[i+1] == '"' {
		r.cut(i+1, r.headerEnd(i+1))
		return
	}
	r.cut(i+1, r.valueEnd(i+1))
}

// valueEnd finds where an unquoted value ends.
func (r *redactor) valueEnd(from int) int {
	for from < len(r.s) && r.s[from] != '&' && !isDelimiter(r.s[from]) {
		from++
	}
	return from
}

// jwt cuts a JSON web token: its first part begins with eyJ, base64 for {".
func (r *redactor) jwt(i int) {
	from := i - 2
	if from < r.done || r.s[from] != 'e' || r.s[from+1] != 'y' || from > 0 && isBase64URL(r.s[from-1]) {
		return
	}
	to, dots := i+1, 0
	for to < len(r.s) && (isBase64URL(r.s[to]) || r.s[to] == '.') {
		if r.s[to] == '.' {
			dots++
		}
		to++
	}
	if dots > 0 && to-from >= secretRun {
		r.cut(from, to)
	}
}

// secretNames end the names of members and parameters that hold secrets.
var secretNames = []string{"token", "secret", "password", "passwd", "api_key", "apikey"}

func isSecretName(word string) bool {
	if strings.EqualFold(word, "fencing_token") {
		return false // a counter
	}
	for _, n := range secretNames {
		if len(word) >= len(n) && strings.EqualFold(word[len(word)-len(n):], n) {
			return true
		}
	}
	return false
}

// wordBefore is the name that ends at i, empty when it is longer than any name
// that matters.
func (r *redactor) wordBefore(i int) string {
	from := i
	for from > r.done && i-from <= 32 && (isAlnum(r.s[from-1]) || r.s[from-1] == '_' || r.s[from-1] == '-') {
		from--
	}
	if i-from > 32 {
		return ""
	}
	return r.s[from:i]
}

func oneOf(word string, list []string) bool {
	for _, w := range list {
		if strings.EqualFold(word, w) {
			return true
		}
	}
	return false
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

func isAlnum(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= lower(c) && lower(c) <= 'z'
}

func isBase64URL(c byte) bool { return isAlnum(c) || c == '-' || c == '_' }

func isHex(s string) bool {
	for i := range len(s) {
		if c := lower(s[i]); (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func isDelimiter(c byte) bool {
	switch c {
	case ' ', '\t', '\r', '\n', '"', '\'', '`', '\\', '<', '>', '[', ']', '{', '}', '(', ')', ',':
		return true
	}
	return false
}
