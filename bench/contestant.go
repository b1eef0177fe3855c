package main

import (
	"context"
	"runtime/debug"
	"slices"
	"strings"
)

// topicName is the topic, stream or subject that every contestant has its messages in.
const topicName = "bench"

// kind is what is measured.
type kind string

const (
	kindProduce kind = "produce" // many in flight
	kindConsume kind = "consume" // from the start to the end
	kindSync    kind = "sync"    // one message in flight
	kindLatency kind = "latency" // a fixed rate, acknowledged and received
)

// contestant is a system that is measured: a broker and the client that a program
// would use with it. A contestant itself holds nothing: a value of it is made in each
// process that needs one.
type contestant interface {
	about() about
	// serve starts the broker in the present process, which is its own.
	serve(ctx context.Context, t target) (server, error)
	// connect opens the client's end. The broker is new and has nothing in it.
	connect(ctx context.Context, t target) (session, error)
}

// about says what a contestant is, without starting anything.
type about struct {
	name  string // in the names of rows
	title string
	// version is what was really built or found.
	version string
	// sync is what an acknowledged message outlives.
	sync  string
	kinds []kind
	// partitioned tells that there can be more than one partition.
	partitioned bool
	// embedded tells that the broker is in the client's process, and serve not called.
	embedded bool
	// missing says why the contestant cannot be run here; "" if it can.
	missing string
}

// target is what both ends of a run know.
type target struct {
	Addr       string // of the broker, in a form of the contestant's own
	Dir        string // for the broker's files; it is there and empty
	Partitions int
}

// server is a broker that runs in the present process, or below it.
type server interface {
	addr() string
	// usage is what the broker has used so far; after settle the peak counts anew.
	usage() (usage, error)
	settle()
	close() error
}

// session is a client that is connected. Its methods are called one after the other,
// except that consume runs beside produce when latency is measured.
type session interface {
	// produce sends all that l hands out, as fast as the system takes it, and returns
	// when each message has been acknowledged.
	produce(ctx context.Context, l *load) error
	// consume reads from the start of the topic until s is full.
	consume(ctx context.Context, s *sink) error
	// send sends one message and returns when it is acknowledged.
	send(ctx context.Context, payload []byte) error
	// stored asks the broker how many messages it has.
	stored(ctx context.Context) (int64, error)
	close() error
}

// contestants returns all of them, in the order of the tables.
func contestants() []contestant {
	return []contestant{
		robustContestant{},
		robustContestant{channels: true},
		robustContestant{full: true},
		robustContestant{old: true},
		robustContestant{embedded: true},
		kafkaContestant{},
		redisContestant{},
		natsContestant{},
		natsContestant{fast: true},
		natsContestant{fast: true, async: true},
		nsqContestant{},
		naiveContestant{},
		echoContestant{},
		framesContestant{},
		framesContestant{base64: true},
	}
}

func findContestant(name string) contestant {
	all := contestants()
	i := slices.IndexFunc(all, func(c contestant) bool { return c.about().name == name })
	if i < 0 {
		return nil
	}
	return all[i]
}

// moduleVersion returns the version of a module that the program was built with.
func moduleVersion(path string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, m := range info.Deps {
		if m.Path == path {
			return strings.TrimSuffix(m.Version, "+incompatible")
		}
	}
	return "unknown"
}
