package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/aminofox/robust-go-sdk"
)

// deletion deletes what is named, all that it can.
type deletion struct {
	kind string
	dry  bool // only look
	one  func(admin *robust.AdminClient, ctx context.Context, name string) error
	look func(ctx context.Context, admin *robust.AdminClient, name string) (what string, err error)
}

func (d *deletion) run(ctx context.Context, a *app, names []string) error {
	return a.withAdmin(ctx, func(ctx context.Context, admin *robust.AdminClient) error {
		done, lines := []string{}, []string{}
		var failed []error
		for _, name := range names {
			var what string
			var err error
			if d.dry {
				what, err = d.look(ctx, admin, name)
				what = " (" + what + ")"
			} else {
				err = d.one(admin, ctx, name)
			}
			if err != nil {
				failed = append(failed, aboutOne(d.kind, printable(name), err))
				continue
			}
			done, lines = append(done, name), append(lines, printable(name)+what)
		}
		if len(done) > 0 {
			failed = append(failed, d.show(a, done, lines))
		}
		return errors.Join(failed...)
	})
}

func (d *deletion) show(a *app, names, lines []string) error {
	key, text := "deleted", "deleted"
	if d.dry {
		key, text = "would_delete", "would delete"
	}
	return a.show(map[string]any{key: names}, func(w io.Writer) {
		for _, line := range lines {
			fmt.Fprintf(w, "%s: %s %s\n", text, d.kind, line)
		}
	})
}
