package robustotel

import (
	"maps"
	"slices"

	"go.opentelemetry.io/otel/propagation"

	robust "github.com/aminofox/robust-go-sdk"
)

// Carrier lets a propagator read the headers of a message, and write to those of a copy: the
// message that it was made of does not change. It is for programs that inject or extract by
// themselves.
type Carrier struct {
	message *robust.Message
	copied  bool
}

var _ propagation.TextMapCarrier = (*Carrier)(nil)

// NewCarrier returns a carrier of m, which must not be nil.
func NewCarrier(m *robust.Message) *Carrier { return &Carrier{message: m} }

// Message returns the copy that has what was set, or the message itself if nothing was. Of the
// copy only the headers are its own; key, value and metadata are those of the message.
func (c *Carrier) Message() *robust.Message { return c.message }

// Get returns the value of a header, "" if it is not there.
func (c *Carrier) Get(key string) string { return c.message.Headers[key] }

// Set sets a header of the copy.
func (c *Carrier) Set(key, value string) {
	if !c.copied {
		m := *c.message
		m.Headers = make(map[string]string, len(c.message.Headers)+2)
		maps.Copy(m.Headers, c.message.Headers)
		c.message, c.copied = &m, true
	}
	c.message.Headers[key] = value
}

// Keys returns the names of the headers.
func (c *Carrier) Keys() []string { return slices.Collect(maps.Keys(c.message.Headers)) }
