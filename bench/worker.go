package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// job is one run: what one contestant does once, in a process that starts the broker,
// is its client, and measures both.
type job struct {
	Contestant string
	Kinds      []kind // what is reported; produce and consume go together
	Size       int
	Partitions int
	Duration   time.Duration
	// Limit is how many messages are sent at most in Duration.
	Limit int64
	// Rate is messages a second when latency is measured.
	Rate int
	// Pool is the size of the pool of payloads.
	Pool int
	Dir  string // for the broker's files; made and removed by whoever runs the job
}

// result is what one run has measured of one kind. A percentile of 0 was not measured.
type result struct {
	Kind     kind
	Messages int64
	Rate     float64 // messages a second
	AckP50   time.Duration
	AckP99   time.Duration
	EndP50   time.Duration // from sending to receiving
	EndP99   time.Duration
	// What a message costs, and the largest resident size. Of an embedded broker all is
	// the client's.
	ClientCPU, BrokerCPU   time.Duration
	ClientPeak, BrokerPeak int64
	Err                    string
}

// runWorker does a job and prints the results.
func runWorker(j job) error {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // However it ends, the parent has.
		cancel()
	}()
	text, err := json.Marshal(j.run(ctx))
	if err != nil {
		return err
	}
	fmt.Fprintln(os.Stdout, string(text))
	return nil
}

// run returns a result for each kind of the job.
func (j job) run(ctx context.Context) []result {
	ctx, cancel := context.WithTimeout(ctx, time.Minute+40*j.Duration)
	defer cancel()
	results := make([]result, len(j.Kinds))
	for i, k := range j.Kinds {
		results[i].Kind = k
	}
	worked, ended := j.measure(ctx, results)
	for i := range results {
		r := &results[i]
		switch {
		case worked != nil && r.Messages == 0:
			r.Err = worked.Error() // It failed, or what comes before it.
		case ended != nil && r.Err == "":
			r.Err = ended.Error()
		default:
		}
	}
	return results
}

// measure starts both ends, lets them work, and ends them. worked is why there are not
// all results, ended that there was something wrong behind them.
func (j job) measure(ctx context.Context, results []result) (worked, ended error) {
	c := findContestant(j.Contestant)
	if c == nil {
		return fmt.Errorf("there is no contestant %q", j.Contestant), nil
	}
	t := target{Dir: j.Dir, Partitions: j.Partitions}
	w := &worker{job: j}
	if !c.about().embedded {
		b, err := startBroker(ctx, j.Contestant, t)
		if err != nil {
			return err, nil
		}
		defer func() { ended = errors.Join(ended, b.stop()) }()
		w.broker, t.Addr = b, b.addr
	}
	s, err := c.connect(ctx, t)
	if err != nil {
		return fmt.Errorf("connect: %w", err), nil
	}
	defer func() { ended = errors.Join(ended, s.close()) }()
	w.session, w.pool = s, newPool(j.Pool)
	return w.work(ctx, results), nil
}

// work goes through the plan and puts what is reported into results.
func (w *worker) work(ctx context.Context, results []result) error {
	for _, do := range w.plan() {
		r, err := do(ctx)
		if i := slices.Index(w.Kinds, r.Kind); i >= 0 {
			results[i] = r
			if err != nil {
				results[i].Err = err.Error()
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", r.Kind, err)
		}
	}
	return nil
}

// worker is a job at work.
type worker struct {
	job
	broker  *brokerProcess // nil: embedded
	session session
	pool    pool

	total int64  // messages stored so far
	sum   uint64 // of their digests
}

// plan is what is to be done for the job's kinds, in this order.
func (w *worker) plan() []func(context.Context) (result, error) {
	wants := func(k kind) bool { return slices.Contains(w.Kinds, k) }
	var steps []func(context.Context) (result, error)
	if wants(kindSync) {
		steps = append(steps, w.oneAtATime)
	}
	if wants(kindLatency) {
		steps = append(steps, w.latency)
	}
	if wants(kindProduce) || wants(kindConsume) {
		steps = append(steps, w.produce)
	}
	if wants(kindConsume) {
		steps = append(steps, w.consume)
	}
	return steps
}

// warmup is the part of the duration for which the same is done before.
const warmup = 10

func (w *worker) load(part int) *load {
	return newLoad(loadConfig{
		pool: w.pool, size: w.Size, partitions: w.Partitions,
		duration: w.Duration / time.Duration(part), limit: max(1, w.Limit/int64(part)), first: w.total,
	})
}

// send lets l be sent, and counts.
func (w *worker) send(ctx context.Context, l *load) error {
	if err := w.session.produce(ctx, l); err != nil {
		return err
	}
	if err := l.check(); err != nil {
		return err
	}
	w.total += l.sent
	w.sum += l.sum
	return nil
}

// count compares what the broker has with what was acknowledged.
func (w *worker) count(ctx context.Context) error {
	stored, err := w.session.stored(ctx)
	if err != nil {
		return fmt.Errorf("count: %w", err)
	}
	if stored != w.total {
		return fmt.Errorf("%d messages were acknowledged and %d are stored", w.total, stored)
	}
	return nil
}

func (w *worker) produce(ctx context.Context) (result, error) {
	r := result{Kind: kindProduce}
	if err := w.send(ctx, w.load(warmup)); err != nil {
		return r, err
	}
	m, err := w.meter()
	if err != nil {
		return r, err
	}
	l := w.load(1)
	if err := w.send(ctx, l); err != nil {
		return r, err
	}
	if err := m.read(&r, l.sent); err != nil {
		return r, err
	}
	r.ClientPeak -= int64(len(w.pool))
	r.AckP50, r.AckP99 = percentiles(l.acks)
	return r, w.count(ctx)
}

func (w *worker) consume(ctx context.Context) (result, error) {
	r := result{Kind: kindConsume}
	w.pool = nil
	m, err := w.meter()
	if err != nil {
		return r, err
	}
	s := newSink(w.total, false)
	if err := w.session.consume(ctx, s); err != nil {
		return r, err
	}
	if err := m.read(&r, w.total); err != nil {
		return r, err
	}
	return r, s.check(w.sum)
}

func (w *worker) oneAtATime(ctx context.Context) (result, error) {
	r := result{Kind: kindSync}
	times := newHistogram()
	sendAll := func(part int) error {
		l := w.load(part)
		ln := l.lane()
		for it, ok := ln.next(ctx); ok; it, ok = ln.next(ctx) {
			start := time.Now()
			if err := w.session.send(ctx, it.payload); err != nil {
				return fmt.Errorf("send: %w", err)
			}
			_ = times.RecordValue(min(time.Since(start).Nanoseconds(), histogramMax)) // It is in the range.
			l.done(0, nil)
		}
		ln.close()
		w.total += l.sent
		w.sum += l.sum
		return l.check()
	}
	if err := sendAll(warmup); err != nil {
		return r, err
	}
	m, err := w.meter()
	if err != nil {
		return r, err
	}
	times.Reset()
	before := w.total
	if err := sendAll(1); err != nil {
		return r, err
	}
	if err := m.read(&r, w.total-before); err != nil {
		return r, err
	}
	r.ClientPeak -= int64(len(w.pool))
	r.AckP50, r.AckP99 = percentiles(times)
	return r, w.count(ctx)
}

func (w *worker) latency(ctx context.Context) (result, error) {
	r := result{Kind: kindLatency}
	n := min(w.Limit, int64(w.Duration.Seconds()*float64(w.Rate)))
	s := newSink(n, true)
	m, err := w.meter()
	if err != nil {
		return r, err
	}
	both, cancel := context.WithCancel(ctx)
	defer cancel()
	consumed := make(chan error, 1)
	go func() {
		err := w.session.consume(both, s)
		if err != nil {
			err = fmt.Errorf("consume: %w", err)
			cancel()
		}
		consumed <- err
	}()
	l := newLoad(loadConfig{
		pool: w.pool, size: w.Size, partitions: w.Partitions, limit: n, rate: w.Rate,
	})
	err = w.send(both, l)
	if err != nil {
		cancel()
	}
	if err = errors.Join(err, <-consumed); err != nil {
		return r, err
	}
	if err := m.read(&r, l.sent); err != nil {
		return r, err
	}
	r.ClientPeak -= int64(len(w.pool))
	r.AckP50, r.AckP99 = percentiles(l.acks)
	r.EndP50, r.EndP99 = percentiles(s.times)
	return r, errors.Join(s.check(w.sum), w.count(ctx))
}

func percentiles(h *hdrhistogram.Histogram) (p50, p99 time.Duration) {
	if h.TotalCount() == 0 {
		return 0, 0
	}
	return time.Duration(h.ValueAtQuantile(50)), time.Duration(h.ValueAtQuantile(99))
}

// meter measures what both ends use from when it is made.
type meter struct {
	broker         *brokerProcess
	start          time.Time
	client, server usage
}

func (w *worker) meter() (*meter, error) {
	m := &meter{broker: w.broker}
	ownUsage{}.settle()
	var err error
	if m.server, err = w.broker.ask(askSettle); err != nil {
		return nil, err
	}
	if m.client, err = selfUsage(); err != nil {
		return nil, err
	}
	m.start = time.Now()
	return m, nil
}

// read puts what was used for n messages into r.
func (m *meter) read(r *result, n int64) error {
	elapsed := time.Since(m.start)
	client, err := selfUsage()
	if err != nil {
		return err
	}
	server, err := m.broker.ask(askUsage)
	if err != nil {
		return err
	}
	r.Messages = n
	r.Rate = float64(n) / elapsed.Seconds()
	r.ClientCPU = (client.CPU - m.client.CPU) / time.Duration(n)
	r.BrokerCPU = (server.CPU - m.server.CPU) / time.Duration(n)
	r.ClientPeak, r.BrokerPeak = client.Peak, server.Peak
	return nil
}
