package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/alecthomas/kong"
)

// configFile answers kong for the values of flags: those of a command stand in the table
// of the command's name, [serve] or [topic.create], those of all above the tables.
type configFile struct{ values map[string]any }

// loadTOML is a kong.ConfigurationLoader.
func loadTOML(r io.Reader) (kong.Resolver, error) { //nolint:ireturn // what kong asks for
	var f configFile
	if err := decodeTOML(r, &f.values); err != nil {
		return nil, fmt.Errorf("the configuration file: %w", err)
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
			return fmt.Errorf("the configuration file sets %s%s, which is no flag", path, name)
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
	if list, ok := value.([]any); ok {
		texts := make([]string, len(list))
		for i, one := range list {
			texts[i] = fmt.Sprint(one)
		}
		return strings.Join(texts, ","), nil
	}
	return value, nil
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
