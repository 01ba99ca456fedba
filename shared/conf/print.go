package conf

import (
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"

	"github.com/adit-tunnel/adit/shared/logs"
	"go.yaml.in/yaml/v3"
)

// Print writes the effective configuration as YAML in the order of the fields.
// Secrets show as a mark, and so do those inside other texts, such as a password
// in a URL. What it writes, but for the marks, can be loaded again.
func Print(w io.Writer, cfg any) error {
	root := &yaml.Node{Kind: yaml.MappingNode}
	groups := map[string]*yaml.Node{"": root}
	for _, k := range keysOf(structOf(cfg)).list {
		parent, name := "", k.name
		if i := strings.LastIndexByte(k.name, '.'); i >= 0 {
			parent, name = k.name[:i], k.name[i+1:]
		}
		m := group(groups, parent)
		m.Content = append(m.Content, textNode(name), valueNode(k))
	}
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(root); err != nil {
		return fmt.Errorf("print configuration: %w", err)
	}
	if err := enc.Close(); err != nil {
		return fmt.Errorf("print configuration: %w", err)
	}
	return nil
}

// group finds or makes the mapping of a dotted name.
func group(groups map[string]*yaml.Node, name string) *yaml.Node {
	if m := groups[name]; m != nil {
		return m
	}
	parent, last := "", name
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		parent, last = name[:i], name[i+1:]
	}
	up, m := group(groups, parent), &yaml.Node{Kind: yaml.MappingNode}
	up.Content = append(up.Content, textNode(last), m)
	groups[name] = m
	return m
}

func valueNode(k *key) *yaml.Node {
	v := k.value
	switch {
	case k.secret() && v.String() == "":
		return textNode("")
	case isText(v.Type()) || v.Kind() == reflect.String:
		return textNode(text(v))
	case v.Kind() == reflect.Slice:
		n := &yaml.Node{Kind: yaml.SequenceNode}
		if v.Len() == 0 {
			n.Style = yaml.FlowStyle
		}
		for i := range v.Len() {
			n.Content = append(n.Content, textNode(v.Index(i).String()))
		}
		return n
	case v.Kind() == reflect.Map:
		n := &yaml.Node{Kind: yaml.MappingNode}
		if v.Len() == 0 {
			n.Style = yaml.FlowStyle
		}
		names := v.MapKeys()
		slices.SortFunc(names, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		for _, name := range names {
			n.Content = append(n.Content, textNode(name.String()), textNode(v.MapIndex(name).String()))
		}
		return n
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Value: text(v)}
}

// textNode is a scalar that reads back as text: the encoder quotes where it must.
func textNode(s string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: logs.Redact(s)}
}
