package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// topServer is what a server says of itself beside the protocol, which tells no bytes and
// no connections. docs/metrics.md has the names.
type topServer struct {
	Connections float64
	Stored      float64 // bytes of batches, so far
	LogBytes    float64
}

// metricsPage is where a server shows its metrics, as text in the form of Prometheus.
type metricsPage struct {
	url    string
	client http.Client
}

// maxMetricsPage is more than a server with all the series that it names has to say.
const maxMetricsPage = 64 << 20

func newMetricsPage(address string) (*metricsPage, error) {
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/metrics"
	}
	return &metricsPage{url: u.String(), client: http.Client{Timeout: 2 * time.Second}}, nil
}

func (p *metricsPage) read(ctx context.Context) (*topServer, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url, nil)
	if err != nil {
		return nil, err
	}
	response, err := p.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", p.url, response.Status)
	}
	return parseMetrics(io.LimitReader(response.Body, maxMetricsPage))
}

// series are the names of what is wanted, and where it goes.
func (s *topServer) series() map[string]*float64 {
	return map[string]*float64{
		"robust_broker_open_connections":   &s.Connections,
		"robust_broker_stored_bytes_total": &s.Stored,
		"robust_broker_log_bytes":          &s.LogBytes,
	}
}

// parseMetrics finds what is of interest: series without labels, a line each.
func parseMetrics(r io.Reader) (*topServer, error) {
	var s topServer
	wanted := s.series()
	found := 0
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		if into := wanted[fields[0]]; into != nil {
			value, err := strconv.ParseFloat(fields[1], 64)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", fields[0], err)
			}
			*into = value
			found++
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if found == 0 {
		return nil, errors.New("none of a broker's are there")
	}
	return &s, nil
}
