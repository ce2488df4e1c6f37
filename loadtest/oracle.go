package loadtest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

const (
	// oracleWorkers is how many questions are under way at the same time.
	oracleWorkers = 16
	// oracleQueue bounds the questions that wait; those beyond it get no answer.
	oracleQueue = 1 << 14
	// oraclePatience bounds one question to one edge.
	oraclePatience = 2 * time.Second
	// oracleAnswer bounds what an edge may answer.
	oracleAnswer = 1 << 20
)

// oracle asks edges at their admin addresses where a client is. Which edge a client came to is not known where one name stands for all
// of them, so all are asked.
type oracle struct {
	admins []string // base URLs
	pool   string
	http   *http.Client
	queue  chan question
	asking sync.WaitGroup
	cancel context.CancelFunc
}

type question struct {
	client string
	answer func(broker string)
}

// newOracle starts its workers; close ends them.
func newOracle(ctx context.Context, admins []string, pool string) *oracle {
	o := &oracle{
		admins: admins, pool: pool, queue: make(chan question, oracleQueue),
		http: &http.Client{
			Timeout:   oraclePatience,
			Transport: &http.Transport{MaxIdleConnsPerHost: oracleWorkers, MaxConnsPerHost: oracleWorkers},
		},
	}
	ctx, o.cancel = context.WithCancel(ctx)
	for range oracleWorkers {
		o.asking.Go(func() {
			for q := range o.queue {
				q.answer(o.where(ctx, q.client))
			}
		})
	}
	return o
}

// ask has answer called with the name of the client's broker, "" if it is not known, by another goroutine. It does not block.
// It reports false if too many questions wait: answer is not called then.
func (o *oracle) ask(client string, answer func(broker string)) bool {
	select {
	case o.queue <- question{client, answer}:
		return true
	default:
		return false
	}
}

// close waits until every question has its answer, which is soon: those that are left get none. Nothing may be asked any more.
func (o *oracle) close() {
	o.cancel()
	close(o.queue)
	o.asking.Wait()
	o.http.CloseIdleConnections()
}

// where is the broker that all live connections of the client are at; "" if there is none, or if they are at several.
func (o *oracle) where(ctx context.Context, client string) string {
	found := ""
	for _, admin := range o.admins {
		brokers, err := o.live(ctx, admin, client)
		if err != nil {
			continue // an edge that is away has nobody
		}
		for _, b := range brokers {
			if found != "" && b != found {
				return ""
			}
			found = b
		}
	}
	return found
}

// live is where one edge has the client.
func (o *oracle) live(ctx context.Context, admin, client string) ([]string, error) {
	target := strings.TrimSuffix(admin, "/") + "/v1/clients?key=" + url.QueryEscape(client)
	if o.pool != "" {
		target += "&pool=" + url.QueryEscape(o.pool)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, err
	}
	res, err := o.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, oracleAnswer))
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", target, res.Status)
	}
	var found struct {
		Live []struct {
			Broker string `json:"broker"`
		} `json:"live"`
	}
	if err := json.Unmarshal(body, &found); err != nil {
		return nil, fmt.Errorf("%s: %w", target, err)
	}
	var brokers []string
	for _, c := range found.Live {
		brokers = append(brokers, c.Broker)
	}
	return brokers, nil
}
