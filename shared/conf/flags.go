package conf

import (
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// Flags registers a flag for each key of the defaults, a configuration struct or a
// pointer to one; secrets get none, since a command line is readable by all. A
// flag's text is checked by Load, together with all other sources.
func Flags(fs *pflag.FlagSet, defaults any) {
	for _, k := range Keys(defaults) {
		if k.Secret {
			continue
		}
		value := &flagValue{text: k.Default, kind: k.kind}
		f := fs.VarPF(value, k.Name, "", strings.TrimSpace(k.Help+" ["+k.Env+"]"))
		if value.kind == "bool" {
			f.NoOptDefVal = "true"
		}
	}
}

// flagIn finds the flag that Flags registered for the key, not another program's
// flag of that name.
func (k *key) flagIn(fs *pflag.FlagSet) *pflag.Flag {
	if fs == nil {
		return nil
	}
	f := fs.Lookup(k.name)
	if f == nil {
		return nil
	}
	if _, ok := f.Value.(*flagValue); !ok {
		return nil
	}
	return f
}

// flagValue holds a flag's text as it was given.
type flagValue struct {
	text string
	kind string // as --help shows it
	set  bool
}

// String returns the text.
func (v *flagValue) String() string { return v.text }

// Type is what --help shows behind the flag's name.
func (v *flagValue) Type() string { return v.kind }

// Set takes any text. A list or mapping given twice is one longer list or mapping.
func (v *flagValue) Set(s string) error {
	if v.set && (v.kind == "list" || v.kind == "name=value,…") {
		v.text += "," + s
		return nil
	}
	v.text, v.set = s, true
	return nil
}

func flagKind(t reflect.Type) string {
	switch {
	case strings.HasSuffix(t.String(), "Duration"):
		return "duration"
	case isText(t) || t.Kind() == reflect.String:
		return "string"
	case t.Kind() == reflect.Slice:
		return "list"
	case t.Kind() == reflect.Map:
		return "name=value,…"
	case t.Kind() == reflect.Bool:
		return "bool"
	}
	return "number"
}

// changedFlag shows a flag to viper as plain text, whatever its type: viper's own
// conversions turn a bad number into zero.
type changedFlag struct{ flag *pflag.Flag }

// HasChanged says whether the command line named the flag.
func (f changedFlag) HasChanged() bool { return f.flag.Changed }

// Name is the flag's name.
func (f changedFlag) Name() string { return f.flag.Name }

// ValueString is the text that was given.
func (f changedFlag) ValueString() string { return f.flag.Value.String() }

// ValueType is always text.
func (f changedFlag) ValueType() string { return "string" }

func unknownIn(environ, names []string) []UnknownVar {
	var out []UnknownVar
	for _, pair := range environ {
		name, _, _ := strings.Cut(pair, "=")
		if !strings.HasPrefix(name, "ADIT_") || slices.Contains(names, name) {
			continue
		}
		out = append(out, UnknownVar{Name: name, Nearest: nearest(name, names)})
	}
	slices.SortFunc(out, func(a, b UnknownVar) int { return strings.Compare(a.Name, b.Name) })
	return out
}
