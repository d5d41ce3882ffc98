package program

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A UsageError is a fault of the command line or the configuration: exit code 2.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

// Usagef returns a UsageError.
func Usagef(format string, args ...any) error { return &UsageError{fmt.Errorf(format, args...)} }

// Loader reads the settings of one program.
type Loader struct {
	Settings Settings
	keys     []key
	flags    map[string]string // values given as flags
	config   string
}

// NewLoader returns a Loader; listen is the default of http.listen.
func NewLoader(listen string) *Loader {
	l := &Loader{flags: map[string]string{}}
	l.keys = l.Settings.keys(listen)
	return l
}

// AddFlags makes a flag of each key, and --config.
func (l *Loader) AddFlags(fs *flag.FlagSet) {
	fs.StringVar(&l.config, "config", "", "YAML `file` with the same keys")
	for _, k := range l.keys {
		fs.Func(k.name, k.help, func(v string) error {
			l.flags[k.name] = v
			return nil
		})
	}
}

// Load sets each key from its flag, else its environment variable or the file named by that with _FILE, else
// the configuration file, else its default. All faults come back joined in one UsageError; what is faulty then has
// its default, so that the settings can be judged all the same.
func (l *Loader) Load(getenv func(string) string) (Settings, error) {
	file, errs := l.readFile(getenv)
	for _, k := range l.keys {
		value, err := l.value(k, getenv, file)
		if err == nil {
			err = k.set(value)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", k.name, err), k.set(k.def))
		}
	}
	if l.Settings.Database.OwnerURL == "" {
		l.Settings.Database.OwnerURL = l.Settings.Database.URL
	}
	if l.Settings.Database.ReadURL == "" {
		l.Settings.Database.ReadURL = l.Settings.Database.URL
	}
	return l.Settings, usage(errs...)
}

func (l *Loader) value(k key, getenv func(string) string, file map[string]string) (string, error) {
	if v, ok := l.flags[k.name]; ok {
		return v, nil
	}
	v := getenv(k.env())
	if k.secret {
		path := getenv(k.env() + "_FILE")
		switch {
		case path != "" && v != "":
			return "", fmt.Errorf("both %s and %s_FILE are set", k.env(), k.env())
		case path != "":
			return readSecret(path)
		}
	}
	if v != "" {
		return v, nil
	}
	if v, ok := file[k.name]; ok {
		return v, nil
	}
	return k.def, nil
}

func readSecret(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	return strings.TrimRight(string(b), "\r\n"), nil
}

// readFile returns the file's values by key; a key that no setting has is a fault.
func (l *Loader) readFile(getenv func(string) string) (map[string]string, []error) {
	path := l.config
	if path == "" {
		path = getenv("PLENUM_CONFIG")
	}
	if path == "" {
		return nil, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, []error{fmt.Errorf("--config: %w", err)}
	}
	var root yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(&root); err != nil && !errors.Is(err, io.EOF) {
		return nil, []error{fmt.Errorf("--config: %s: %w", path, yamlFault(err))}
	}
	values, errs := map[string]string{}, []error(nil)
	if root.Kind == yaml.DocumentNode {
		l.flatten("", root.Content[0], values, func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("--config: %s: %w", path, fmt.Errorf(format, args...)))
		})
		if err := d.Decode(&root); !errors.Is(err, io.EOF) {
			errs = append(errs, fmt.Errorf("--config: %s: holds more than one document", path))
		}
	}
	return values, errs
}

// yamlFault hides the name of an unknown anchor: it may be a password that begins with *.
func yamlFault(err error) error {
	if strings.Contains(err.Error(), "unknown anchor") {
		return errors.New("an alias of nothing: quote a value that begins with *")
	}
	return err
}

// flatten turns nested mappings into dotted keys, and the sequence of a list into a comma-separated one. A key that
// no setting has, one given twice, and what is no plain value are faults; they show no value, which may be a secret.
func (l *Loader) flatten(name string, n *yaml.Node, into map[string]string, fault func(string, ...any)) {
	at := slices.IndexFunc(l.keys, func(k key) bool { return k.name == name })
	_, twice := into[name]
	switch {
	case twice:
		fault("%s: given twice", name)
	case at < 0 && n.Kind == yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			l.flatten(strings.TrimPrefix(name+"."+n.Content[i].Value, "."), n.Content[i+1], into, fault)
		}
	case at < 0 && n.Tag == "!!null" && l.isSection(name):
	case name == "":
		fault("holds no keys")
	case at < 0:
		shown, _, _ := strings.Cut(name, ":") // what follows may be a value, without the space that makes it one
		fault("unknown key %q", shown)
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		into[name] = ""
	case n.Kind == yaml.ScalarNode:
		into[name] = n.Value
	case n.Kind == yaml.SequenceNode && l.keys[at].list && !slices.ContainsFunc(n.Content, isNoScalar):
		items := make([]string, len(n.Content))
		for i, c := range n.Content {
			items[i] = c.Value
		}
		into[name] = strings.Join(items, ",")
	case l.keys[at].tree:
		text, err := yaml.Marshal(n)
		if err != nil {
			fault("%s: cannot be read as YAML", name)
		}
		into[name] = string(text)
	default:
		fault("%s: is no plain value; quote one that begins with {, [, & or *", name)
	}
}

// isSection says whether keys begin with name; the whole file is one.
func (l *Loader) isSection(name string) bool {
	return name == "" || slices.ContainsFunc(l.keys, func(k key) bool { return strings.HasPrefix(k.name, name+".") })
}

func isNoScalar(n *yaml.Node) bool { return n.Kind != yaml.ScalarNode }

// PrintKeys writes every key with its environment variable, default and meaning.
func (l *Loader) PrintKeys(w io.Writer) {
	fmt.Fprintf(w, "Each key is a flag (--KEY VALUE), an environment variable and a path in the file of --config;\nflag before environment before file before default.\n\n")
	for _, k := range l.keys {
		fmt.Fprintf(w, "  %s\n        %s", k.name, k.env())
		if k.secret {
			fmt.Fprintf(w, " or %s_FILE", k.env())
		}
		fmt.Fprintf(w, "\n        %s", k.help)
		if k.def != "" {
			fmt.Fprintf(w, " (default %s)", k.def)
		}
		fmt.Fprintln(w)
	}
}
