// Command clientonly uses the client and no broker. A test builds it and looks at
// what was linked.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	robust "github.com/aminofox/robust-go-sdk"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	client, err := robust.New(robust.WithBrokers("127.0.0.1:1"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := client.Ping(ctx); err != nil {
		_ = client.Close()
		return err
	}
	return client.Close()
}
