package main

import robust "github.com/aminofox/robust-go-sdk"

// newManySender returns the client's fastest way to send many: a callback for each
// message.
func newManySender(client *robust.Client) (*robust.AsyncProducer, error) {
	return client.AsyncProducer()
}
