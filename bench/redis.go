package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"
)

const redisProgram = "redis-server"

const (
	// redisLanes goroutines send pipelines of redisPipeline commands each.
	redisLanes    = 4
	redisPipeline = 250
	// redisRead is the COUNT of XREAD.
	redisRead = "1000"
)

// redisContestant is Redis streams, a stream for each partition, by way of rueidis.
type redisContestant struct{}

func (redisContestant) about() about {
	a := about{
		name:        "redis",
		title:       "Redis streams, rueidis",
		sync:        "written to the file before the acknowledgement, fsync every second (appendonly yes, appendfsync everysec, no rewrites, no snapshots)",
		kinds:       []kind{kindProduce, kindConsume, kindSync, kindLatency},
		partitioned: true,
	}
	//nolint:noctx // it ends by itself
	out, err := exec.Command(redisProgram, "--version").Output()
	if err != nil {
		a.missing = fmt.Sprintf("%s cannot be run: %v", redisProgram, err)
		return a
	}
	a.version = "Redis " + string(regexp.MustCompile(`v=(\S+)`).ReplaceAll(regexp.MustCompile(`v=\S+`).Find(out), []byte("$1"))) +
		", rueidis " + moduleVersion("github.com/redis/rueidis")
	return a
}

func (redisContestant) serve(ctx context.Context, t target) (server, error) {
	host, port, err := freeAddr(ctx)
	if err != nil {
		return nil, err
	}
	e, err := startExternal(redisProgram,
		"--bind", host, "--port", port, "--dir", t.Dir, "--daemonize", "no",
		"--appendonly", "yes", "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0", "--save", "")
	if err != nil {
		return nil, err
	}
	s := &redisServer{external: e, address: net.JoinHostPort(host, port)}
	err = e.await(ctx, func() error {
		client, err := redisClient(s.address)
		if err != nil {
			return err
		}
		s.client = client
		return client.Do(ctx, client.B().Ping().Build()).Error()
	})
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

type redisServer struct {
	*external
	address string
	client  rueidis.Client
}

func (s *redisServer) addr() string { return s.address }

// usage asks Redis, which counts its processor time itself.
func (s *redisServer) usage() (usage, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	info, err := s.client.Do(ctx, s.client.B().Info().Section("cpu").Build()).ToString()
	if err != nil {
		return usage{}, err
	}
	var seconds float64
	for _, name := range []string{"used_cpu_sys", "used_cpu_user"} {
		_, rest, _ := strings.Cut(info, name+":")
		text, _, _ := strings.Cut(rest, "\r\n")
		n, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return usage{}, fmt.Errorf("%s of INFO: %w", name, err)
		}
		seconds += n
	}
	return usage{CPU: time.Duration(seconds * float64(time.Second)), Peak: peak(s.pid())}, nil
}

func (s *redisServer) settle() { resetPeak(s.pid()) }

func (s *redisServer) close() error {
	if s.client != nil {
		s.client.Close()
	}
	return s.external.close()
}

func redisClient(addr string) (rueidis.Client, error) {
	return rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{addr}, DisableCache: true, ForceSingleClient: true, DisableRetry: true,
	})
}

func (redisContestant) connect(_ context.Context, t target) (session, error) {
	client, err := redisClient(t.Addr)
	if err != nil {
		return nil, err
	}
	s := &redisSession{client: client, addr: t.Addr, keys: make([]string, t.Partitions)}
	for p := range s.keys {
		s.keys[p] = topicName + ":" + strconv.Itoa(p)
	}
	return s, nil
}

type redisSession struct {
	client rueidis.Client
	addr   string
	keys   []string
}

func (s *redisSession) add(partition int32, payload []byte) rueidis.Completed {
	return s.client.B().Xadd().Key(s.keys[partition]).Id("*").FieldValue().FieldValue("v", rueidis.BinaryString(payload)).Build()
}

func (s *redisSession) produce(ctx context.Context, l *load) error {
	var wg sync.WaitGroup
	for range redisLanes {
		wg.Go(func() {
			ln := l.lane()
			defer ln.close()
			items := make([]item, 0, redisPipeline)
			commands := make([]rueidis.Completed, 0, redisPipeline)
			for {
				if items = ln.take(ctx, items[:0]); len(items) == 0 {
					return
				}
				commands = commands[:0]
				for _, it := range items {
					commands = append(commands, s.add(it.partition, it.payload))
				}
				for i, r := range s.client.DoMulti(ctx, commands...) {
					l.done(items[i].at, r.Error())
				}
			}
		})
	}
	wg.Wait()
	return nil
}

func (s *redisSession) send(ctx context.Context, payload []byte) error {
	return s.client.Do(ctx, s.add(0, payload)).Error()
}

func (s *redisSession) stored(ctx context.Context) (int64, error) {
	var total int64
	for _, key := range s.keys {
		n, err := s.client.Do(ctx, s.client.B().Xlen().Key(key).Build()).ToInt64()
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

func (s *redisSession) consume(ctx context.Context, into *sink) error {
	client, err := redisClient(s.addr)
	if err != nil {
		return err
	}
	defer client.Close()
	ln := into.lane()
	defer ln.close()
	last := make(map[string]string, len(s.keys))
	for _, key := range s.keys {
		last[key] = "0"
	}
	for more := true; more; {
		ids := make([]string, len(s.keys))
		for i, key := range s.keys {
			ids[i] = last[key]
		}
		command := client.B().Arbitrary("XREAD", "COUNT", redisRead, "BLOCK", "1000", "STREAMS").Keys(s.keys...).Args(ids...).Blocking()
		answer, err := client.Do(ctx, command).ToMessage()
		if rueidis.IsRedisNil(err) {
			continue // Nothing has come meanwhile.
		}
		if err == nil {
			more, err = takeStreams(&answer, last, ln)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// takeStreams hands on the answer to XREAD, streams with their entries, and sets where
// each stream goes on. It goes through the answer by hand, since every ready-made way
// makes a map of each entry.
func takeStreams(answer *rueidis.RedisMessage, last map[string]string, into *sinkLane) (more bool, err error) {
	streams, err := answer.ToMap()
	if err != nil {
		return false, err
	}
	more = true
	for key, stream := range streams {
		entries, err := stream.ToArray()
		if err != nil {
			return false, err
		}
		for _, entry := range entries {
			parts, err := entry.ToArray()
			if err != nil || len(parts) != 2 {
				return false, errors.Join(errors.New("an entry of a stream is an ID and fields"), err)
			}
			fields, err := parts[1].ToArray()
			if err != nil || len(fields) != 2 {
				return false, errors.Join(errors.New("an entry has one field"), err)
			}
			value, err := fields[1].AsBytes()
			if err != nil {
				return false, err
			}
			if last[key], err = parts[0].ToString(); err != nil {
				return false, err
			}
			more = into.take(value) && more
		}
	}
	return more, nil
}

func (s *redisSession) close() error {
	s.client.Close()
	return nil
}
