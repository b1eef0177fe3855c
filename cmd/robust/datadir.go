package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/aminofox/robust-go-sdk"
)

type logCmd struct {
	Check  logCheckCmd  `cmd:"" help:"Read all that is in a data directory and say what is damaged; changes nothing."`
	Repair logRepairCmd `cmd:"" help:"Give up damaged messages so that all others can be read."`
}

type logCheckCmd struct {
	Dir string `arg:"" type:"existingdir" predictor:"dir" help:"The data directory."`
}

// Run checks a directory.
func (c *logCheckCmd) Run(ctx context.Context, a *app) error {
	report, err := robust.CheckDataDir(ctx, c.Dir)
	return showDataDir(a, report, err, "robust log repair "+c.Dir+" gives up what is damaged; make a copy first")
}

type logRepairCmd struct {
	Dir string `arg:"" type:"existingdir" predictor:"dir" help:"The data directory."`
}

// Run repairs a directory.
func (c *logRepairCmd) Run(ctx context.Context, a *app) error {
	if entries, err := os.ReadDir(c.Dir); err != nil {
		return err
	} else if len(entries) == 0 {
		return usageErrorf("", "%s is empty: there is nothing to repair", c.Dir)
	}
	report, err := robust.RepairDataDir(ctx, c.Dir)
	return showDataDir(a, report, err, "what is not repaired cannot be made up: it must come from a copy")
}

type dataDirView struct {
	Topics     int          `json:"topics"`
	Partitions int          `json:"partitions"`
	Segments   int          `json:"segments"`
	Batches    int64        `json:"batches"`
	Records    int64        `json:"records"` // messages, and what groups have kept
	Bytes      int64        `json:"bytes"`
	Damage     []damageView `json:"damage"`
}

type damageView struct {
	Topic     string `json:"topic,omitempty"`
	Partition int32  `json:"partition"`
	Text      string `json:"text"`
	Tail      bool   `json:"tail"` // the broker cuts it off by itself
	Repaired  bool   `json:"repaired"`
}

// showDataDir shows a report, which comes also with an error. Damage that neither has been
// repaired nor will be by the broker's start is exitDamaged.
func showDataDir(a *app, report *robust.DataDirReport, err error, hint string) error {
	if report == nil || err != nil && report.Segments == 0 && len(report.Damage) == 0 {
		return noDataDir(err)
	}
	v := dataDirView{
		Topics: report.Topics, Partitions: report.Partitions, Segments: report.Segments,
		Batches: report.Batches, Records: report.Records, Bytes: report.Bytes, Damage: []damageView{},
	}
	damaged := 0
	for i := range report.Damage {
		d := &report.Damage[i]
		v.Damage = append(v.Damage, damageView{
			Topic: d.Topic, Partition: d.Partition, Text: d.Error(), Tail: d.Tail, Repaired: d.Repaired,
		})
		if !d.Tail && !d.Repaired {
			damaged++
		}
	}
	shown := a.show(v, func(w io.Writer) {
		fmt.Fprintf(w, "%s, %s with messages, %s\n", plural(v.Topics, "topic"), plural(v.Partitions, "partition"), plural(v.Segments, "file"))
		fmt.Fprintf(w, "%s in %d batches, %s: messages, and what consumer groups have kept\n", plural(v.Records, "record"), v.Batches, bytesText(v.Bytes))
		for _, d := range v.Damage {
			fmt.Fprintf(w, "%s: %s\n", d.state(), d.Text)
		}
		if err == nil && len(v.Damage) == 0 {
			fmt.Fprintln(w, "nothing is damaged")
		}
	})
	switch {
	case err != nil:
		return err
	case shown != nil:
		return shown
	case damaged > 0:
		return &exitError{code: exitDamaged, err: errors.New(plural(damaged, "fault") + " in what is stored"), hint: hint}
	}
	return nil
}

// noDataDir is for a directory of which nothing was read.
func noDataDir(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return usageErrorf("the directory is that of robust serve --data", "%w", err)
	}
	return err
}

// state is a word or two for a fault.
func (d *damageView) state() string {
	switch {
	case d.Repaired:
		return "repaired"
	case d.Tail:
		return "left by a crash, cut off when the broker starts"
	}
	return "damaged"
}
