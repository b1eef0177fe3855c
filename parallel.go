package robust

import (
	"errors"
	"sync"
)

// inParallel calls f with 0 to n-1, at most limit at a time, and returns when all have
// returned. Its error is all of theirs; after one no more are begun.
func inParallel(n, limit int, f func(i int) error) error {
	var (
		mu   sync.Mutex // guards errs
		errs []error
		busy sync.WaitGroup
	)
	failed := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(errs) > 0
	}
	slots := make(chan struct{}, limit)
	for i := 0; i < n && !failed(); i++ {
		slots <- struct{}{}
		busy.Go(func() {
			defer func() { <-slots }()
			if err := f(i); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	busy.Wait()
	return errors.Join(errs...)
}
