package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// row is what the runs of one row of a table have measured.
type row struct {
	Contestant string
	Kind       kind
	Size       int
	Partitions int
	Results    []result
}

// runAll runs what s asks for and returns the rows. Between the runs of a contestant
// come those of all others, so that a machine that changes its speed does so for all.
func runAll(ctx context.Context, s *settings, progress io.Writer) ([]row, error) {
	var rows []row
	heats := s.heats()
	total, done := 0, 0
	for _, heat := range heats {
		total += len(heat) * s.count
	}
	for _, heat := range heats {
		first := len(rows)
		place := make([]int, len(heat))
		for i, j := range heat {
			place[i] = len(rows) - first
			for _, k := range j.Kinds {
				rows = append(rows, row{Contestant: j.Contestant, Kind: k, Size: j.Size, Partitions: j.Partitions})
			}
		}
		for round := range s.count {
			for n := range heat {
				i := (n + round) % len(heat) // Nobody is always behind the same one.
				results, err := runJob(ctx, heat[i], s.dir)
				if err != nil {
					return rows, err
				}
				done++
				for k, r := range results {
					to := &rows[first+place[i]+k]
					to.Results = append(to.Results, r)
					fmt.Fprintf(progress, "%d/%d %s: %s\n", done, total,
						rowName(r.Kind, to.Size, to.Partitions, to.Contestant), r.brief())
				}
			}
		}
	}
	return rows, nil
}

// brief is a result in a few words.
func (r *result) brief() string {
	if r.Err != "" {
		return "failed: " + r.Err
	}
	text := formatRate(r.Rate) + "/s"
	if r.AckP50 > 0 {
		text += fmt.Sprintf(", acknowledged after %v, %v", r.AckP50.Round(time.Microsecond), r.AckP99.Round(time.Microsecond))
	}
	if r.EndP50 > 0 {
		text += fmt.Sprintf(", received after %v, %v", r.EndP50.Round(time.Microsecond), r.EndP99.Round(time.Microsecond))
	}
	return text
}

// runJob runs a job in a process of its own. What goes wrong there is in the results;
// the error is that there can be no more runs.
func runJob(ctx context.Context, j job, dir string) ([]result, error) {
	var err error
	if j.Dir, err = os.MkdirTemp(dir, "robust-bench-"); err != nil {
		return nil, err
	}
	results, err := inProcess(ctx, j)
	if err != nil && ctx.Err() == nil {
		results = nil
		for _, k := range j.Kinds {
			results = append(results, result{Kind: k, Err: err.Error()})
		}
	}
	return results, errors.Join(ctx.Err(), os.RemoveAll(j.Dir))
}

func inProcess(ctx context.Context, j job) ([]result, error) {
	// The job bounds itself; this is for one that hangs.
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute+50*j.Duration)
	defer cancel()
	c, err := startChild(ctx, role{Worker: &j})
	if err != nil {
		return nil, err
	}
	line, err := c.read()
	if err != nil {
		return nil, err
	}
	var results []result
	err = json.Unmarshal([]byte(line), &results)
	return results, errors.Join(err, c.stop())
}
