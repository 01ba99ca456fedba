package conf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/adit-tunnel/adit/shared/ident"
	"go.yaml.in/yaml/v3"
)

// maxFile bounds a configuration or secret file in bytes, so that a wrong path
// (/dev/zero, a core dump) is an error and no memory.
const maxFile = 1 << 20

// fileValue is a key's value in the file. Being no map, it passes through viper
// with the letter case of its names intact.
type fileValue struct{ node *yaml.Node }

// readFile returns the values of the file by key, and its faults.
func readFile(path string, keys *schema) (map[string]fileValue, []error) {
	b, err := readBounded(path)
	if err != nil {
		return nil, []error{fmt.Errorf("read configuration: %w", err)}
	}
	return parseFile(path, b, keys)
}

func parseFile(path string, b []byte, keys *schema) (map[string]fileValue, []error) {
	dec := yaml.NewDecoder(bytes.NewReader(b))
	var doc yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, nil // an empty file sets nothing
	case err != nil:
		return nil, []error{&Fault{Source: path, Text: strings.TrimPrefix(err.Error(), "yaml: ")}}
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, []error{&Fault{Source: path, Text: "holds more than one YAML document"}}
	}
	w := walker{path: path, keys: keys, values: map[string]fileValue{}}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.ShortTag() == "!!null" {
		return nil, nil // only comments
	}
	w.walk("", root)
	return w.values, w.faults
}

// walker collects the values of a document.
type walker struct {
	path   string
	keys   *schema
	values map[string]fileValue
	faults []error
}

func (w *walker) fault(n *yaml.Node, key, format string, args ...any) {
	w.faults = append(w.faults, &Fault{Source: fmt.Sprintf("%s:%d", w.path, n.Line), Key: key, Text: fmt.Sprintf(format, args...)})
}

func (w *walker) walk(group string, n *yaml.Node) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" && group != "" {
		return // a group whose keys are all commented out
	}
	if n.Kind != yaml.MappingNode {
		w.fault(n, group, "want a mapping of keys, not %s", describe(n))
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := resolve(n.Content[i]), n.Content[i+1]
		if k.Kind != yaml.ScalarNode {
			w.fault(n.Content[i], group, "want a key, not %s", describe(k))
			continue
		}
		name := k.Value
		if group != "" {
			name = group + "." + name
		}
		if line, ok := seen[name]; ok {
			w.fault(k, name, "stands twice, first in line %d", line)
			continue
		}
		seen[name] = k.Line
		if _, ok := w.keys.byName[name]; ok && !strings.Contains(k.Value, ".") {
			w.values[name] = fileValue{node: v}
			continue
		}
		if w.keys.groups[name] && !strings.Contains(k.Value, ".") {
			w.walk(name, resolve(v))
			continue
		}
		w.fault(k, name, "%s", w.unknown(name, k.Value))
	}
}

// unknown says what is wrong with a key that does not exist.
func (w *walker) unknown(name, written string) string {
	if w.keys.byName[name] != nil || w.keys.groups[name] {
		return fmt.Sprintf("write nested keys on lines of their own, not %q", written)
	}
	if near := nearest(name, w.keys.names()); near != "" {
		return fmt.Sprintf("unknown key, did you mean %s?", near)
	}
	return "unknown key"
}

// ReadSecretFile reads the secret that a "…_file" key points to: the file's text
// without surrounding white space. An empty file is an error. Errors name the path
// and never hold what was read.
func ReadSecretFile(path string) (ident.Secret, error) {
	b, err := readBounded(path)
	if err != nil {
		return "", fmt.Errorf("read secret: %w", err)
	}
	secret := strings.TrimSpace(string(b))
	if secret == "" {
		return "", fmt.Errorf("read secret: %s is empty", path)
	}
	return ident.Secret(secret), nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read from
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		return nil, err
	case len(b) > maxFile:
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxFile)
	}
	return b, nil
}
