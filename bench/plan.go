package main

import (
	"fmt"
	"regexp"
	"slices"
	"time"
)

// settings are what the command line sets.
type settings struct {
	match      *regexp.Regexp
	sizes      []int
	partitions []int
	duration   time.Duration
	count      int
	rate       int
	maxBytes   int64
	dir        string
}

// rowName names a row of the tables, and what -match looks at.
func rowName(k kind, size, partitions int, contestant string) string {
	return fmt.Sprintf("%s/%s/%d/%s", k, sizeName(size), partitions, contestant)
}

func sizeName(n int) string {
	if n%1024 == 0 {
		return fmt.Sprintf("%dKiB", n/1024)
	}
	return fmt.Sprintf("%dB", n)
}

// together are the kinds that one run measures: what is consumed was produced before.
func together() [][]kind {
	return [][]kind{{kindSync}, {kindLatency}, {kindProduce, kindConsume}}
}

// heats returns the jobs that are compared with each other, together: those of each
// contestant that takes part.
func (s *settings) heats() [][]job {
	var heats [][]job
	for _, kinds := range together() {
		for _, size := range s.sizes {
			for _, partitions := range s.partitions {
				if partitions > 1 && (kinds[0] == kindSync || kinds[0] == kindLatency) {
					continue // What they measure happens in one partition.
				}
				if heat := s.heat(kinds, size, partitions); len(heat) > 0 {
					heats = append(heats, heat)
				}
			}
		}
	}
	return heats
}

func (s *settings) heat(kinds []kind, size, partitions int) []job {
	var heat []job
	for _, c := range contestants() {
		a := c.about()
		if a.missing != "" || partitions > 1 && !a.partitioned {
			continue
		}
		wanted := slices.DeleteFunc(slices.Clone(kinds), func(k kind) bool {
			return !slices.Contains(a.kinds, k) || !s.match.MatchString(rowName(k, size, partitions, a.name))
		})
		if len(wanted) == 0 {
			continue
		}
		heat = append(heat, job{
			Contestant: a.name, Kinds: wanted, Size: size, Partitions: partitions,
			Duration: s.duration, Limit: s.maxBytes / int64(size), Rate: s.rate, Pool: poolBytes,
		})
	}
	return heat
}
