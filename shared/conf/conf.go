// Package conf owns how Adit's programs are configured: one struct per program
// whose fields are the keys, filled from defaults, a YAML file, the environment
// and flags. It is the only package that imports viper, one instance per Load. It
// knows no program's keys, keeps no state, and never prints a secret.
//
// A field becomes a key by its tags:
//
//	Listen string `conf:"listen" help:"address of the public listener"`
//
// Nested structs make dotted keys ("tls.cert_file"); a struct field without a tag
// is skipped unless it is embedded. Types are string, bool, whole numbers, float64,
// []string, map[string]string, types made of these, api.Labels (a list that
// a file may also give as a mapping), and whatever implements
// encoding.TextUnmarshaler (api.Duration, ident.Secret).
//
// The order is flag, environment, file, default; the first that is set wins, and
// lists and mappings are replaced whole, never merged. An empty environment
// variable counts as not set, so that a container's "ADIT_TEAM=" changes nothing.
package conf

import (
	"fmt"
	"os"
	"reflect"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"
)

// keyDelimiter stands in no key: keys are flat to viper, which would otherwise
// split and lower-case the names inside a map[string]string.
const keyDelimiter = "\x00"

// Load fills into, which holds the defaults, from the flags that Flags registered
// on fs (nil: no flags), the environment and the YAML file at path (empty: no
// file). Each fault of each source is reported, in one error (see Faults); into is
// changed only when there is none.
func Load[T any](fs *pflag.FlagSet, path string, into *T) error {
	result := *into
	keys := keysOf(reflect.ValueOf(&result).Elem())
	v := viper.NewWithOptions(viper.KeyDelimiter(keyDelimiter))

	var faults []error
	if path != "" {
		file, errs := readFile(path, keys)
		faults = append(faults, errs...)
		values := make(map[string]any, len(file))
		for name, node := range file {
			values[name] = node
		}
		if err := v.MergeConfigMap(values); err != nil {
			return fmt.Errorf("merge %s: %w", path, err)
		}
	}
	for _, k := range keys.list {
		// Each key is bound by name: AutomaticEnv ignores the variables of keys that
		// have neither default nor flag.
		if err := v.BindEnv(k.name, k.env()); err != nil {
			return fmt.Errorf("bind %s: %w", k.env(), err)
		}
		if f := k.flagIn(fs); f != nil && f.Changed {
			if err := v.BindFlagValue(k.name, changedFlag{f}); err != nil {
				return fmt.Errorf("bind --%s: %w", k.name, err)
			}
		}
		if err := k.assign(v.Get(k.name), fs, path); err != nil {
			faults = append(faults, err)
		}
	}
	if len(faults) > 0 {
		return Join(faults...)
	}
	*into = result
	return nil
}

// assign stores a value in the key's field and says where a bad one came from.
func (k *key) assign(value any, fs *pflag.FlagSet, path string) error {
	switch value := value.(type) {
	case nil:
		return nil // the default stays
	case fileValue:
		if err := decodeNode(value.node, k.value); err != nil {
			return &Fault{Source: fmt.Sprintf("%s:%d", path, value.node.Line), Key: k.name, Text: err.Error()}
		}
		return nil
	case string:
		err := decodeText(value, k.value)
		if err == nil {
			return nil
		}
		if f := k.flagIn(fs); f != nil && f.Changed {
			return &Fault{Source: "--" + k.name, Text: err.Error()}
		}
		return &Fault{Source: k.env(), Text: err.Error()}
	default:
		return &Fault{Key: k.name, Text: fmt.Sprintf("unexpected %T", value)}
	}
}

// UnknownVar is an environment variable that looks like one of Adit's and is not.
type UnknownVar struct {
	Name    string
	Nearest string // the variable it may have meant, or empty
}

// wellKnown are variables that some command of Adit reads beside its keys.
var wellKnown = []string{
	"ADIT_CONFIG", "ADIT_URL", "ADIT_TOKEN", "ADIT_TEAM", "ADIT_PROFILE", "ADIT_SOCKET",
	"ADIT_ENROL_TOKEN", "ADIT_ENROLL_TOKEN",
}

// UnknownEnv lists the ADIT_ variables of the environment that are neither a key
// of cfg, nor well known to other commands, nor named in known. They are no error,
// one environment may serve several programs, but worth a warning.
func UnknownEnv(cfg any, known ...string) []UnknownVar {
	names := append(append([]string(nil), wellKnown...), known...)
	for _, k := range keysOf(structOf(cfg)).list {
		names = append(names, k.env())
	}
	return unknownIn(os.Environ(), names)
}
