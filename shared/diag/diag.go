// Package diag owns the diagnostic bundle of Adit's daemons: one tar.gz file of small
// texts, for whoever helps from afar. Everything in it has its secrets cut out, as the
// logs have. It decides nothing of what it is given and reads no file of the programs'.
package diag

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"github.com/adit-tunnel/adit/shared/logs"
)

// File is one text of a bundle.
type File struct {
	Name  string
	Write func(w io.Writer) error
}

// Write writes a bundle of the files below one directory. What cannot be had is in
// the bundle as NAME.error, so that one fault hides nothing else.
func Write(w io.Writer, dir string, now time.Time, files []File) error {
	gz := gzip.NewWriter(w)
	tw := tar.NewWriter(gz)
	for _, f := range files {
		var text bytes.Buffer
		name := f.Name
		if err := f.Write(&text); err != nil {
			fmt.Fprintf(&text, "\n%v\n", err)
			name += ".error"
		}
		clean := logs.Redact(text.String())
		head := &tar.Header{Name: path.Join(dir, name), Mode: 0o644, Size: int64(len(clean)), ModTime: now, Format: tar.FormatPAX}
		if err := tw.WriteHeader(head); err != nil {
			return fmt.Errorf("write the bundle: %w", err)
		}
		if _, err := io.WriteString(tw, clean); err != nil {
			return fmt.Errorf("write the bundle: %w", err)
		}
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("write the bundle: %w", err)
	}
	if err := gz.Close(); err != nil {
		return fmt.Errorf("write the bundle: %w", err)
	}
	return nil
}

// Text is a file of a text that is there already.
func Text(name, text string) File {
	return File{name, func(w io.Writer) error { _, err := io.WriteString(w, text); return err }}
}

// JSON is a file of a value, asked for when the bundle is written.
func JSON(name string, value func() any) File {
	return File{name, func(w io.Writer) error {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(value())
	}}
}

// Goroutines is what every goroutine of the process does now.
func Goroutines() File {
	return File{"goroutines.txt", func(w io.Writer) error { return pprof.Lookup("goroutine").WriteTo(w, 2) }}
}

// Heap is what holds the process's memory, as text.
func Heap() File {
	return File{"heap.txt", func(w io.Writer) error { return pprof.Lookup("heap").WriteTo(w, 1) }}
}

// Metrics is a scrape.
func Metrics(from prometheus.Gatherer) File {
	return File{"metrics.txt", func(w io.Writer) error {
		families, err := from.Gather()
		enc := expfmt.NewEncoder(w, expfmt.NewFormat(expfmt.TypeTextPlain))
		for _, f := range families {
			if err := enc.Encode(f); err != nil {
				return err
			}
		}
		return err
	}}
}

// Log is what a Recent kept; nil is none.
func Log(recent *logs.Recent) File {
	return File{"log.txt", func(w io.Writer) error {
		if recent == nil {
			return nil
		}
		_, err := recent.WriteTo(w)
		return err
	}}
}

// FileName is what a bundle of that program is called, without its ending.
func FileName(program string, now time.Time) string {
	return program + "-diag-" + now.UTC().Format("20060102-150405")
}

// Save writes a bundle to a file that only its owner can read, and that is either
// whole or not there; "-" is stdout.
func Save(name string, stdout io.Writer, bundle io.Reader) error {
	if name == "-" {
		if _, err := io.Copy(stdout, bundle); err != nil {
			return fmt.Errorf("write the bundle: %w", err)
		}
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".adit-diag-")
	if err != nil {
		return fmt.Errorf("make the bundle's file: %w", err)
	}
	defer os.Remove(f.Name()) // after the rename there is nothing left to remove
	_, err = io.Copy(f, bundle)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return fmt.Errorf("write the bundle: %w", err)
	}
	_, err = fmt.Fprintln(stdout, name)
	return err
}
