// Package install owns what a new machine fetches from its relay: the install script
// and the agent's packages, files of release_dir that are the same for everybody. It
// never authenticates, writes nothing and runs nothing.
package install

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/adit-tunnel/adit/relay/internal/problems"
	"github.com/adit-tunnel/adit/shared/api"
	"github.com/adit-tunnel/adit/shared/ident"
)

// Path is where the script is; the packages and their checksums are below it.
const Path = "/install"

const (
	scriptFile = "install"
	sumsFile   = "SHA256SUMS"
	maxScript  = 256 << 10
)

// packageName is what the release calls the agent's packages.
var packageName = regexp.MustCompile(`^adit-agent_[0-9][0-9A-Za-z.+~-]*_(linux_)?(amd64|arm64)\.(deb|tar\.gz)$`)

// Config is what Files are made of.
type Config struct {
	Dir        string // release_dir
	URL        string // of the relay, as the script is to call it
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Files are what the relay hands out.
type Files struct {
	cfg     Config
	metrics *metrics

	mu   sync.Mutex
	sums map[string]sum // by file name
}

// sum is a checksum and what says that it still holds.
type sum struct {
	hex  string
	size int64
	time time.Time
}

// New returns Files. The directory is looked at when somebody asks: packages come
// and go while the relay runs.
func New(cfg Config) *Files {
	return &Files{cfg: cfg, metrics: newMetrics(cfg.Registerer), sums: map[string]sum{}}
}

// Offered says whether there is anything to hand out.
func (f *Files) Offered() bool {
	info, err := os.Stat(filepath.Join(f.cfg.Dir, scriptFile))
	return f.cfg.Dir != "" && err == nil && info.Mode().IsRegular()
}

// Routes are the patterns of http.ServeMux that are served.
func (f *Files) Routes() map[string]http.Handler {
	return map[string]http.Handler{
		"GET " + Path:             f.answer(f.script),
		"GET " + Path + "/{file}": f.answer(f.file),
	}
}

// answer puts the common headers before what is served, and a problem in its place.
func (f *Files) answer(serve func(http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Cache-Control", "no-cache") // a newer one may be there
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Security-Policy", api.StrictPolicy)
		err := serve(w, r)
		if err == nil {
			return
		}
		f.metrics.count(kindNone)
		id := ident.NewRequestID()
		p, ok := errors.AsType[*api.Problem](err)
		if !ok {
			f.cfg.Logger.Error("read release_dir", "error", err, "request_id", id)
			p = api.NewProblem(api.CodeInternal, "the relay could not read this; its log says why")
		}
		problems.AnswerOwn(w, r, p, id)
	})
}

// script serves the install script, which is told from whom it came.
func (f *Files) script(w http.ResponseWriter, r *http.Request) error {
	file, _, err := f.open(scriptFile)
	if err != nil {
		return err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxScript))
	if err != nil {
		return fmt.Errorf("read the install script: %w", err)
	}
	first, rest, _ := bytes.Cut(text, []byte("\n"))
	var out bytes.Buffer
	fmt.Fprintf(&out, "%s\nADIT_SERVED_BY=%s\n%s", first, quote(f.cfg.URL), rest)
	f.metrics.count(kindScript)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(out.Bytes()))
	return nil
}

// quote makes one word of a shell's text.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// file serves a package, or the checksums of all.
func (f *Files) file(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("file")
	if name == sumsFile {
		return f.checksums(w, r)
	}
	if !packageName.MatchString(name) {
		return missing(name)
	}
	file, info, err := f.open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	s, err := f.sum(file, info)
	if err != nil {
		return err
	}
	f.metrics.count(kindPackage)
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("ETag", `"`+s+`"`)
	http.ServeContent(w, r, "", info.ModTime(), file)
	return nil
}

func (f *Files) checksums(w http.ResponseWriter, r *http.Request) error {
	entries, err := os.ReadDir(f.cfg.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list packages: %w", err)
	}
	var out bytes.Buffer
	for _, e := range entries {
		if !packageName.MatchString(e.Name()) {
			continue
		}
		file, info, err := f.open(e.Name())
		if err != nil {
			return err
		}
		s, err := f.sum(file, info)
		file.Close()
		if err != nil {
			return err
		}
		fmt.Fprintf(&out, "%s  %s\n", s, e.Name())
	}
	if out.Len() == 0 {
		return missing(sumsFile)
	}
	f.metrics.count(kindSums)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(out.Bytes()))
	return nil
}

func (f *Files) open(name string) (*os.File, os.FileInfo, error) {
	if f.cfg.Dir == "" {
		return nil, nil, missing(name)
	}
	file, err := os.Open(filepath.Join(f.cfg.Dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, missing(name)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open %s: %w", name, err)
	}
	info, err := file.Stat()
	if err = cmp.Or(err, notRegular(name, info)); err != nil {
		file.Close()
		return nil, nil, err
	}
	return file, info, nil
}

func notRegular(name string, info os.FileInfo) error {
	if info == nil || info.Mode().IsRegular() {
		return nil
	}
	return missing(name)
}

// sum is the checksum of a file, computed once for as long as it stays the same.
func (f *Files) sum(file *os.File, info os.FileInfo) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock() // one at a time: they are many only after a start
	if s, ok := f.sums[info.Name()]; ok && s.size == info.Size() && s.time.Equal(info.ModTime()) {
		return s.hex, nil
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return "", fmt.Errorf("read %s: %w", info.Name(), err)
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return "", fmt.Errorf("read %s again: %w", info.Name(), err)
	}
	s := sum{hex: hex.EncodeToString(hash.Sum(nil)), size: info.Size(), time: info.ModTime()}
	f.sums[info.Name()] = s
	return s.hex, nil
}

func missing(name string) *api.Problem {
	return api.Problemf(api.CodeNotFound, "this relay hands out no %q: its operator puts the agent's packages and the script `install` of a release into release_dir", name)
}
