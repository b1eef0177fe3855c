package main

import (
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// histogramMax is the longest time that is told from longer ones.
const histogramMax = int64(time.Minute)

func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, histogramMax, 3) }

// processStart is the zero of nanos. Both ends of a message are in one process.
//
//nolint:gochecknoglobals // it is the same for the whole process
var processStart = sync.OnceValue(time.Now)

// nanos is the time on the monotonic clock; never 0.
func nanos() int64 { return time.Since(processStart()).Nanoseconds() + 1 }
