package conf

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/adit-tunnel/adit/shared/api"
)

// decodeText reads a value of a flag or the environment: lists are separated by
// commas, mappings are k=v,k=v. What holds commas itself belongs in the file.
func decodeText(s string, into reflect.Value) error {
	switch t := into.Type(); {
	case isText(t):
		return into.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s))
	case t.Kind() == reflect.Slice:
		list := reflect.MakeSlice(t, 0, 0)
		for _, item := range splitList(s) {
			list = reflect.Append(list, reflect.ValueOf(item).Convert(t.Elem()))
		}
		into.Set(list)
		return nil
	case t.Kind() == reflect.Map:
		m := reflect.MakeMap(t)
		for _, item := range splitList(s) {
			k, v, ok := strings.Cut(item, "=")
			if k = strings.TrimSpace(k); !ok || k == "" {
				return fmt.Errorf("want name=value,name=value, not %q", item)
			}
			if err := setEntry(m, k, strings.TrimSpace(v)); err != nil {
				return err
			}
		}
		into.Set(m)
		return nil
	case t.Kind() == reflect.Bool:
		b, err := strconv.ParseBool(s)
		if err != nil {
			return fmt.Errorf("want true or false, not %q", s)
		}
		into.SetBool(b)
		return nil
	case t.Kind() == reflect.String:
		into.SetString(s)
		return nil
	}
	return decodeNumber(s, into)
}

func decodeNumber(s string, into reflect.Value) error {
	var err error
	switch t := into.Type(); {
	case into.CanInt():
		var n int64
		if n, err = strconv.ParseInt(s, 10, t.Bits()); err == nil {
			into.SetInt(n)
		}
	case into.CanUint():
		var n uint64
		if n, err = strconv.ParseUint(s, 10, t.Bits()); err == nil {
			into.SetUint(n)
		}
	case into.CanFloat():
		var n float64
		if n, err = strconv.ParseFloat(s, 64); err == nil {
			into.SetFloat(n)
		}
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, strconv.ErrRange):
		return fmt.Errorf("%s is out of range", s)
	}
	return fmt.Errorf("want %s, not %q", wanted(into.Type()), s)
}

// decodeNode reads a value of the file. Nothing is guessed from a wrong type, but
// a text key takes any scalar as it is written, so that "agent_id: 007" keeps its
// zeros, and a list takes one scalar as its only item.
func decodeNode(n *yaml.Node, into reflect.Value) error {
	n = resolve(n)
	t := into.Type()
	wrong := fmt.Errorf("want %s, not %s", wanted(t), describe(n))
	switch {
	case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null":
		return errors.New("has no value; remove the key to get the default")
	case isText(t) || t.Kind() == reflect.String:
		if n.Kind != yaml.ScalarNode {
			return wrong
		}
		return decodeText(n.Value, into)
	case t == reflect.TypeFor[api.Labels]() && n.Kind == yaml.MappingNode:
		return decodeLabels(n, into, wrong)
	case t.Kind() == reflect.Slice:
		return decodeList(n, into, wrong)
	case t.Kind() == reflect.Map:
		return decodeMapping(n, into, wrong)
	case n.Kind != yaml.ScalarNode:
		return wrong
	case t.Kind() == reflect.Bool:
		if n.ShortTag() != "!!bool" {
			return wrong
		}
	case t.Kind() == reflect.Float64:
		if tag := n.ShortTag(); tag != "!!float" && tag != "!!int" {
			return wrong
		}
	default:
		if n.ShortTag() != "!!int" {
			return wrong
		}
	}
	value := reflect.New(t)
	if err := n.Decode(value.Interface()); err != nil {
		return fmt.Errorf("%s is out of range", n.Value)
	}
	into.Set(value.Elem())
	return nil
}

func decodeList(n *yaml.Node, into reflect.Value, wrong error) error {
	t := into.Type()
	items := n.Content
	switch n.Kind {
	case yaml.ScalarNode:
		items = []*yaml.Node{n}
	case yaml.SequenceNode:
	default:
		return wrong
	}
	list := reflect.MakeSlice(t, 0, len(items))
	for i, item := range items {
		item = resolve(item)
		if item.Kind != yaml.ScalarNode || item.ShortTag() == "!!null" {
			return fmt.Errorf("item %d: want text, not %s", i+1, describe(item))
		}
		list = reflect.Append(list, reflect.ValueOf(item.Value).Convert(t.Elem()))
	}
	into.Set(list)
	return nil
}

// decodeLabels reads a mapping as the list of its entries.
func decodeLabels(n *yaml.Node, into reflect.Value, wrong error) error {
	mapping := map[string]string{}
	if err := decodeMapping(n, reflect.ValueOf(&mapping).Elem(), wrong); err != nil {
		return err
	}
	into.Set(reflect.ValueOf(api.LabelsOf(mapping)))
	return nil
}

func decodeMapping(n *yaml.Node, into reflect.Value, wrong error) error {
	if n.Kind != yaml.MappingNode {
		return wrong
	}
	m := reflect.MakeMap(into.Type())
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := resolve(n.Content[i]), resolve(n.Content[i+1])
		if k.Kind != yaml.ScalarNode {
			return fmt.Errorf("want a text as name, not %s", describe(k))
		}
		if v.Kind != yaml.ScalarNode || v.ShortTag() == "!!null" {
			return fmt.Errorf("%s: want text, not %s", k.Value, describe(v))
		}
		if err := setEntry(m, k.Value, v.Value); err != nil {
			return err
		}
	}
	into.Set(m)
	return nil
}

func setEntry(m reflect.Value, k, v string) error {
	name := reflect.ValueOf(k).Convert(m.Type().Key())
	if m.MapIndex(name).IsValid() {
		return fmt.Errorf("%q stands twice", k)
	}
	m.SetMapIndex(name, reflect.ValueOf(v).Convert(m.Type().Elem()))
	return nil
}

// resolve follows a YAML alias; an anchor cannot name an alias, so once is enough.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func splitList(s string) []string {
	var items []string
	for item := range strings.SplitSeq(s, ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}

// wanted names a type for people.
func wanted(t reflect.Type) string {
	switch {
	case isText(t) || t.Kind() == reflect.String:
		return "text"
	case t == reflect.TypeFor[api.Labels]():
		return "a list of texts, or a mapping of names to texts"
	case t.Kind() == reflect.Slice:
		return "a list of texts"
	case t.Kind() == reflect.Map:
		return "a mapping of names to texts"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.Float64:
		return "a number"
	}
	return "a whole number"
}

// describe names what stands in the file, for people.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.SequenceNode:
		return "a list"
	case yaml.MappingNode:
		return "a mapping"
	}
	switch n.ShortTag() {
	case "!!null":
		return "nothing"
	case "!!str":
		return fmt.Sprintf("the text %q", n.Value)
	}
	return n.Value
}

// text is the inverse of decodeText.
func text(v reflect.Value) string {
	switch {
	case isText(v.Type()) || v.Kind() != reflect.Slice && v.Kind() != reflect.Map:
		return fmt.Sprint(v.Interface())
	case v.Kind() == reflect.Slice:
		items := make([]string, v.Len())
		for i := range items {
			items[i] = v.Index(i).String()
		}
		return strings.Join(items, ",")
	}
	var items []string
	for k, e := range v.Seq2() {
		items = append(items, k.String()+"="+e.String())
	}
	slices.Sort(items)
	return strings.Join(items, ",")
}
