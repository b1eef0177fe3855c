package robust

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A disk that does not answer, as one behind a network may: whoever has a context is free at its
// end, and Shutdown soon after; it hung as long as the disk.
func TestDiskDoesNotAnswer(t *testing.T) {
	for _, kind := range []string{"sync", "write"} {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { diskDoesNotAnswer(t, kind) })
		})
	}
}

func diskDoesNotAnswer(t *testing.T, kind string) {
	const patience = time.Second
	m := newMemFiles(1)
	require.NoError(t, m.mkdir("/data"))
	d, err := openQuietDir(m, "/data", SyncAlways)
	require.NoError(t, err)
	b, err := NewBroker(WithStorage(d), WithTopic("demo", 1))
	require.NoError(t, err)
	c, err := b.Client()
	require.NoError(t, err)
	p, err := c.SyncProducer()
	require.NoError(t, err)
	_, err = p.Send(t.Context(), NewMessage("demo", []byte("first")))
	require.NoError(t, err)

	answers := make(chan struct{})
	hangs := time.AfterFunc(time.Hour, func() { close(answers) }) // The test fails instead of not ending.
	m.setFault(func(op fileOp) fault {
		if op.kind == kind && strings.HasSuffix(op.path, segmentSuffix) {
			<-answers
		}
		return fault{}
	})
	within := func(f func(ctx context.Context) error) (time.Duration, error) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		began := time.Now()
		err := f(ctx)
		return time.Since(began), err
	}
	for i := range 3 {
		took, err := within(func(ctx context.Context) error {
			_, err := p.Send(ctx, NewMessage("demo", fmt.Append(nil, i)))
			return err
		})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, patience, took)
	}
	took, err := within(func(ctx context.Context) error {
		_, err := c.Admin().DeleteRecords(ctx, "demo", 0, 1)
		return err
	})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Equal(t, patience, took)

	// Others are served what there is.
	other, err := b.Client()
	require.NoError(t, err)
	pc, err := other.PartitionConsumer("demo", 0)
	require.NoError(t, err)
	require.Equal(t, "first", string((<-pc.Messages()).Value))
	require.NoError(t, other.Close())

	took, err = within(b.Shutdown)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, ErrStorage)
	require.Equal(t, patience+closeGrace, took)

	require.True(t, hangs.Stop())
	close(answers)
	require.NoError(t, b.Close(), "it waits for the storage")
	require.NoError(t, b.Shutdown(t.Context()))
	require.NoError(t, c.Close())
	require.NoError(t, d.Close())
}

// A storage that takes longer to close than the context of Shutdown has is not cut off at its end,
// nor is that an error.
func TestShutdownWaitsForStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemFiles(1)
		require.NoError(t, m.mkdir("/data"))
		d, err := openQuietDir(m, "/data", SyncNever)
		require.NoError(t, err)
		b, err := NewBroker(WithStorage(d), WithTopic("demo", 1))
		require.NoError(t, err)
		c, err := b.Client()
		require.NoError(t, err)
		p, err := c.SyncProducer()
		require.NoError(t, err)
		_, err = p.Send(t.Context(), NewMessage("demo", []byte("first")))
		require.NoError(t, err)
		require.NoError(t, c.Close())
		m.setFault(func(op fileOp) fault {
			if op.kind == "sync" && strings.HasSuffix(op.path, segmentSuffix) {
				<-time.After(closeGrace / 2)
			}
			return fault{}
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		require.NoError(t, b.Shutdown(ctx))
		require.Equal(t, closeGrace/2, time.Since(began))
		require.NoError(t, d.Close())
	})
}
