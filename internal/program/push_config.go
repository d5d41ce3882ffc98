package program

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"plenum/pkg/feed"
	"plenum/pkg/feed/kafka"
	"plenum/pkg/feed/webhook"
)

// A pushItem is one consumer of the key push: it has exactly one of the two targets.
type pushItem struct {
	feed.PushConfig
	kafka   *kafka.Config
	webhook *webhook.Config
}

// push reads the key. Every fault begins with where it is, as in push[0] (erp).webhook.url, and shows no secret.
func (s Settings) push() ([]pushItem, error) {
	var root yaml.Node
	d := yaml.NewDecoder(strings.NewReader(s.Push))
	if err := d.Decode(&root); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("push: %w", yamlFault(err))
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, errors.New("push: holds more than one document")
	}
	list := root.Content[0]
	if list.Kind == yaml.ScalarNode && list.Tag == "!!null" {
		return nil, nil
	}
	if list.Kind != yaml.SequenceNode {
		return nil, errors.New("push: is no list; each consumer begins with a hyphen")
	}
	var r pushReader
	items, names := make([]pushItem, len(list.Content)), map[string]int{}
	for i, n := range list.Content {
		items[i] = r.item(i, n)
		name := items[i].Name
		if first, taken := names[name]; taken && name != "" {
			r.fault(where(i, name)+".name", "push[%d] has it too: each consumer has a cursor of its own", first)
		} else {
			names[name] = i
		}
	}
	return items, errors.Join(r.errs...)
}

// where names an item in an error.
func where(i int, name string) string {
	if name == "" {
		return fmt.Sprintf("push[%d]", i)
	}
	return fmt.Sprintf("push[%d] (%s)", i, name)
}

// pushReader reads nodes and gathers faults.
type pushReader struct{ errs []error }

func (r *pushReader) fault(at, format string, args ...any) {
	r.errs = append(r.errs, fmt.Errorf("%s: %w", at, fmt.Errorf(format, args...)))
}

// faults adds each of the errors that are joined in err, all of which begin with a field.
func (r *pushReader) faults(at string, err error) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			r.faults(at, e)
		}
	} else if err != nil {
		r.errs = append(r.errs, fmt.Errorf("%s.%w", at, err))
	}
}

// field reads the value of a key; at is where it is.
type field func(at string, n *yaml.Node)

// fields reads a mapping of known keys.
func (r *pushReader) fields(at string, n *yaml.Node, known map[string]field) {
	if n.Kind != yaml.MappingNode {
		r.fault(at, "is no mapping of keys to values")
		return
	}
	given := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i].Value, n.Content[i+1]
		read, ok := known[key]
		switch {
		case !ok:
			shown, _, _ := strings.Cut(key, ":") // what follows may be a value, without the space that makes it one
			r.fault(at, "unknown field %q; known are %s", shown, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		case given[key]:
			r.fault(at+"."+key, "given twice")
		default:
			given[key] = true
			read(at+"."+key, value)
		}
	}
}

func (r *pushReader) item(i int, n *yaml.Node) pushItem {
	item := pushItem{PushConfig: feed.PushConfig{Limit: feed.DefaultLimit, DeadLetterAfter: feed.DefaultDeadLetterAfter}}
	at := where(i, nameOf(n))
	before := len(r.errs)
	r.fields(at, n, map[string]field{
		"name": r.text(&item.Name), "from": r.text(&item.From), "limit": r.integer(&item.Limit),
		"dead_letter_after": r.integer(&item.DeadLetterAfter), "required": r.boolean(&item.Required),
		"kafka":   func(at string, n *yaml.Node) { item.kafka = r.kafka(at, n) },
		"webhook": func(at string, n *yaml.Node) { item.webhook = r.webhook(at, n) },
	})
	readable := len(r.errs) == before
	r.faults(at, item.Validate())
	switch {
	case item.kafka != nil && item.webhook != nil:
		r.fault(at, "has both kafka and webhook: make two consumers of it")
	case item.kafka != nil:
		item.Target = "kafka"
		if readable {
			r.faults(at+".kafka", item.kafka.Validate())
		}
	case item.webhook != nil:
		item.Target = "webhook"
		if readable {
			r.faults(at+".webhook", item.webhook.Validate())
		}
	case readable:
		r.fault(at, "has neither kafka nor webhook")
	}
	return item
}

// nameOf finds the name, to name everything else by it.
func nameOf(n *yaml.Node) string {
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == "name" && n.Content[i+1].Kind == yaml.ScalarNode {
			return n.Content[i+1].Value
		}
	}
	return ""
}

func (r *pushReader) kafka(at string, n *yaml.Node) *kafka.Config {
	c := &kafka.Config{Compression: kafka.DefaultCompression, MaxMessageBytes: kafka.DefaultMaxMessageBytes, Timeout: kafka.DefaultTimeout}
	var passwordFile string
	r.fields(at, n, map[string]field{
		"brokers": r.texts(&c.Brokers), "topic": r.text(&c.Topic), "tls": r.boolean(&c.TLS),
		"ca_file": r.text(&c.CAFile), "cert_file": r.text(&c.CertFile), "key_file": r.text(&c.KeyFile),
		"sasl": r.text(&c.SASL), "username": r.text(&c.Username), "password": r.text(&c.Password), "password_file": r.text(&passwordFile),
		"compression": r.text(&c.Compression), "max_message_bytes": r.integer(&c.MaxMessageBytes), "timeout": r.duration(&c.Timeout),
	})
	r.secret(at+".password", &c.Password, passwordFile)
	return c
}

func (r *pushReader) webhook(at string, n *yaml.Node) *webhook.Config {
	c := &webhook.Config{Timeout: webhook.DefaultTimeout, Headers: map[string]string{}}
	var urlFile string
	var secretFiles []string
	headerFiles := map[string]string{}
	r.fields(at, n, map[string]field{
		"url": r.text(&c.URL), "url_file": r.text(&urlFile), "secret": r.texts(&c.Secrets), "secret_file": r.texts(&secretFiles),
		"headers": r.table(c.Headers), "headers_file": r.table(headerFiles),
		"ca_file": r.text(&c.CAFile), "cert_file": r.text(&c.CertFile), "key_file": r.text(&c.KeyFile), "timeout": r.duration(&c.Timeout),
	})
	r.secret(at+".url", &c.URL, urlFile)
	for _, file := range secretFiles {
		var secret string
		r.secret(at+".secret", &secret, file)
		c.Secrets = append(c.Secrets, secret)
	}
	for _, name := range slices.Sorted(maps.Keys(headerFiles)) {
		value := c.Headers[name]
		r.secret(at+".headers."+name, &value, headerFiles[name])
		c.Headers[name] = value
	}
	return c
}

// secret reads the file of a secret, where one is given.
func (r *pushReader) secret(at string, p *string, file string) {
	if file == "" {
		return
	}
	if *p != "" {
		r.fault(at, "is given, and as a file too")
		return
	}
	value, err := readSecret(file)
	if err != nil {
		r.fault(at+"_file", "%w", err)
	}
	*p = value
}

func (r *pushReader) text(p *string) field {
	return func(at string, n *yaml.Node) {
		if n.Kind != yaml.ScalarNode {
			r.fault(at, "is no plain value; quote one that begins with {, [, & or *")
			return
		}
		if *p = n.Value; n.Tag == "!!null" {
			*p = ""
		}
	}
}

// texts takes one value for a list of one.
func (r *pushReader) texts(p *[]string) field {
	return func(at string, n *yaml.Node) {
		nodes := []*yaml.Node{n}
		if n.Kind == yaml.SequenceNode {
			nodes = n.Content
		}
		for _, n := range nodes {
			var v string
			r.text(&v)(at, n)
			*p = append(*p, v)
		}
	}
}

func (r *pushReader) table(into map[string]string) field {
	return func(at string, n *yaml.Node) {
		if n.Kind != yaml.MappingNode {
			r.fault(at, "is no mapping of keys to values")
			return
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			var v string
			name := n.Content[i].Value
			r.text(&v)(at+"."+name, n.Content[i+1])
			into[name] = v
		}
	}
}

func (r *pushReader) integer(p *int) field {
	return func(at string, n *yaml.Node) {
		v, err := strconv.Atoi(n.Value)
		if err != nil {
			r.fault(at, "%q is not a whole number", n.Value)
			return
		}
		*p = v
	}
}

func (r *pushReader) boolean(p *bool) field {
	return func(at string, n *yaml.Node) {
		v, err := strconv.ParseBool(n.Value)
		if err != nil {
			r.fault(at, "%q is neither true nor false", n.Value)
			return
		}
		*p = v
	}
}

func (r *pushReader) duration(p *time.Duration) field {
	return func(at string, n *yaml.Node) {
		v, err := time.ParseDuration(n.Value)
		if err != nil {
			r.fault(at, "%q is not a duration, such as 20ms or 30s", n.Value)
			return
		}
		*p = v
	}
}
