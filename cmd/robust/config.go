package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/alecthomas/kong"
)

// configFile answers kong for the values of flags: those of a command stand in the table
// of the command's name, [serve] or [topic.create], those of all above the tables.
type configFile struct {
	name   string
	values map[string]any
}

// loadTOML is a kong.ConfigurationLoader.
func loadTOML(r io.Reader) (kong.Resolver, error) { //nolint:ireturn // what kong asks for
	f := configFile{name: "the configuration file"}
	if file, ok := r.(*os.File); ok {
		f.name += " " + file.Name()
	}
	if err := decodeTOML(r, &f.values); err != nil {
		return nil, fmt.Errorf("%s: %w", f.name, err)
	}
	return &f, nil
}

func decodeTOML(r io.Reader, into any) error {
	_, err := toml.NewDecoder(r).Decode(into)
	return err
}

// Validate refuses a name that no flag has: a value with a typing error would be as if it
// were not there.
func (f *configFile) Validate(app *kong.Application) error {
	return f.validate(app.Node, f.values, "")
}

func (f *configFile) validate(n *kong.Node, values map[string]any, path string) error {
	for name, value := range values {
		child := slices.IndexFunc(n.Children, func(c *kong.Node) bool { return c.Name == name })
		table, isTable := value.(map[string]any)
		switch {
		case child >= 0 && isTable:
			if err := f.validate(n.Children[child], table, path+name+"."); err != nil {
				return err
			}
		case !slices.ContainsFunc(n.Flags, func(flag *kong.Flag) bool { return flag.Name == name }):
			return fmt.Errorf("%s sets %s%s, which is no flag", f.name, path, name)
		}
	}
	return nil
}

// Resolve is called for flags that the command line does not set.
func (f *configFile) Resolve(_ *kong.Context, parent *kong.Path, flag *kong.Flag) (any, error) {
	// kong would have the file beat the environment.
	for _, name := range flag.Envs {
		if _, set := os.LookupEnv(name); set {
			return nil, nil
		}
	}
	values := f.values
	if n := parent.Node(); n != nil && n.Type == kong.CommandNode {
		values = f.table(n)
	}
	value, ok := values[flag.Name]
	if !ok {
		return nil, nil
	}
	return flagText(value), nil
}

// flagText is a value as the command line would have it, so that it means the same: a number
// where a time is wanted would be one of nanoseconds.
func flagText(value any) any {
	switch value := value.(type) {
	case []any:
		texts := make([]string, len(value))
		for i, one := range value {
			texts[i] = fmt.Sprint(flagText(one))
		}
		return strings.Join(texts, ",")
	case map[string]any:
		texts := make(map[string]any, len(value))
		for key, one := range value {
			texts[key] = flagText(one)
		}
		return texts
	case time.Time:
		return value.Format(time.RFC3339Nano)
	}
	return fmt.Sprint(value)
}

// table is what stands in a command's table.
func (f *configFile) table(n *kong.Node) map[string]any {
	values := f.values
	if n.Parent != nil && n.Parent.Type == kong.CommandNode {
		values = f.table(n.Parent)
	}
	table, _ := values[n.Name].(map[string]any)
	return table
}
