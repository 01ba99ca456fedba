package conf

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/adit-tunnel/adit/shared/ident"
)

// key is one configuration key and the field that holds its value.
type key struct {
	name  string // dotted
	help  string
	value reflect.Value
}

// schema is the keys of one struct.
type schema struct {
	list   []*key // in the order of the fields
	byName map[string]*key
	groups map[string]bool // dotted names that hold further keys
}

// Key describes one configuration key.
type Key struct {
	Name    string // dotted
	Env     string // its environment variable
	Help    string
	Default string // as a flag would show it; empty for a secret
	Secret  bool   // has no flag
	kind    string // of its flag
}

// Keys lists the keys of a configuration struct or a pointer to one, in order.
func Keys(cfg any) []Key {
	var out []Key
	for _, k := range keysOf(structOf(cfg)).list {
		d := Key{Name: k.name, Env: k.env(), Help: k.help, Secret: k.secret()}
		if !d.Secret {
			d.Default, d.kind = text(k.value), flagKind(k.value.Type())
		}
		out = append(out, d)
	}
	return out
}

// EnvName is the environment variable of a key: "tls.cert_file" is ADIT_TLS_CERT_FILE.
func EnvName(name string) string {
	return "ADIT_" + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(name))
}

func (k *key) env() string { return EnvName(k.name) }

func (k *key) secret() bool { return k.value.Type() == reflect.TypeFor[ident.Secret]() }

// structOf gives a settable struct for a struct or a pointer to one.
func structOf(cfg any) reflect.Value {
	v := reflect.ValueOf(cfg)
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct {
		panic(fmt.Sprintf("conf: %T is no configuration struct", cfg))
	}
	settable := reflect.New(v.Type()).Elem()
	settable.Set(v)
	return settable
}

// keysOf panics when the struct itself is wrong: that is a mistake in the program
// which its first run shows, no fault of a configuration.
func keysOf(v reflect.Value) *schema {
	if v.Kind() != reflect.Struct {
		panic(fmt.Sprintf("conf: %s is no configuration struct", v.Type()))
	}
	s := &schema{byName: map[string]*key{}, groups: map[string]bool{}}
	s.add("", v)
	vars := map[string]string{}
	for _, k := range s.list {
		if other, ok := vars[k.env()]; ok {
			panic(fmt.Sprintf("conf: keys %s and %s share the variable %s", other, k.name, k.env()))
		}
		vars[k.env()] = k.name
	}
	return s
}

func (s *schema) add(prefix string, v reflect.Value) {
	for i := range v.NumField() {
		field := v.Type().Field(i)
		name, tagged := field.Tag.Lookup("conf")
		switch {
		case !tagged && field.Anonymous && field.Type.Kind() == reflect.Struct:
			s.add(prefix, v.Field(i))
			continue
		case !tagged || name == "-":
			continue
		case !field.IsExported():
			panic(fmt.Sprintf("conf: field %s of %s is not exported", field.Name, v.Type()))
		}
		name = prefix + name
		if s.byName[name] != nil || s.groups[name] {
			panic("conf: two fields have the key " + name)
		}
		if supported(field.Type) {
			k := &key{name: name, help: field.Tag.Get("help"), value: v.Field(i)}
			s.list = append(s.list, k)
			s.byName[name] = k
			continue
		}
		if field.Type.Kind() != reflect.Struct {
			panic(fmt.Sprintf("conf: key %s has the type %s, which no source can fill", name, field.Type))
		}
		s.groups[name] = true
		s.add(name+".", v.Field(i))
	}
}

// names lists the keys and groups, for proposals.
func (s *schema) names() []string {
	var names []string
	for _, k := range s.list {
		names = append(names, k.name)
	}
	for g := range s.groups {
		names = append(names, g)
	}
	slices.Sort(names)
	return names
}

func supported(t reflect.Type) bool {
	if isText(t) {
		return true
	}
	switch t.Kind() {
	case reflect.String, reflect.Bool, reflect.Float64,
		reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return true
	case reflect.Slice:
		return t.Elem().Kind() == reflect.String
	case reflect.Map:
		return t.Key().Kind() == reflect.String && t.Elem().Kind() == reflect.String
	}
	return false
}

// isText says that values of the type read themselves from text.
func isText(t reflect.Type) bool {
	return reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}
