package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/limpet-mesh/limpet/registry"
)

// A watch speaks to etcd on a stream of its own rather than through the client's watcher: that one reconnects in silence, for
// ever and to whatever it finds, and keeps without bound what its reader is too slow for. Here the stream's end is the
// watch's end, the reader's pace is the stream's, and silence is noticed.
const (
	// progressEvery is how often etcd is asked where it is: a little less than the 500 ms after which the reader must know.
	progressEvery = 400 * time.Millisecond
	// silence is how long etcd may say nothing on a stream that asks it so often.
	silence = 3 * time.Second
	// answerTimeout bounds the wait for one answer, or for one part of a listing.
	answerTimeout = 10 * time.Second
	// headTimeout bounds the question where the store is, with which every watch begins.
	headTimeout = 3 * time.Second
	pageSize    = 10_000 // keys, of a listing that is not streamed
)

// Watch brings a reader to the present and keeps it there; see registry.Store. It begins by asking the cluster (not one member)
// where it is, since a member that lags behind looks like a restored backup.
func (s *Store) Watch(ctx context.Context, from int64, fn func(registry.Batch) error) error {
	err := s.watch(ctx, from, fn)
	if end := ctx.Err(); end != nil && (end == context.Canceled || !errors.Is(err, end)) {
		return end
	}
	return err // or the caller's deadline, with what stood in the way
}

func (s *Store) watch(ctx context.Context, from int64, fn func(registry.Batch) error) error {
	c, err := s.client(ctx)
	if err != nil {
		return err
	}
	head, now, err := s.head(ctx, c)
	if err != nil {
		return err
	}
	s.mu.Lock()
	why, other := now.replaces(s.known)
	// A reader who lists anew for another reason must be told of it too, once: what it knows is about the store before.
	_, third := now.replaces(s.another)
	listed := other && from == 0 && s.another != identity{} && !third
	if s.another = now; listed || !other {
		s.known, s.another = now, identity{}
	}
	s.mu.Unlock()
	switch {
	case listed:
		s.written.Store(false) // look at its schema before writing
	case other:
		return fmt.Errorf("%w: %s", registry.ErrReset, why)
	case head.Revision < from:
		return fmt.Errorf("%w: at revision %d, watched from %d", registry.ErrReset, head.Revision, from)
	}
	r := &reader{store: s, cli: c}
	if from == 0 {
		from = head.Revision
		if err := s.list(ctx, r, from, fn); err != nil {
			return err
		}
	}
	return s.follow(ctx, r, from, head, fn)
}

// head asks where the store is and who it is, and looks at its schema.
func (s *Store) head(ctx context.Context, c *clientv3.Client) (*pb.ResponseHeader, identity, error) {
	ctx, cancel := context.WithTimeout(ctx, headTimeout)
	defer cancel()
	res, err := c.Get(ctx, s.keys.schema())
	if err != nil {
		return nil, identity{}, s.reach.failure("watch", err)
	}
	id := identity{cluster: res.Header.ClusterId, term: res.Header.RaftTerm}
	for _, kv := range res.Kvs {
		schema, err := checkSchema(kv.Value)
		if err != nil {
			return nil, identity{}, err
		}
		id.store = schema.Store
	}
	return res.Header, id, nil
}

// watchFailure is failure, for what a watch asks of history.
func (s *Store) watchFailure(doing string, err error) error {
	if errors.Is(rpctypes.Error(err), rpctypes.ErrCompacted) {
		return fmt.Errorf("%w: %s: %w", registry.ErrCompacted, doing, err)
	}
	err = s.reach.failure(doing, rpctypes.Error(err))
	if !errors.Is(err, registry.ErrUnavailable) {
		err = fmt.Errorf("%w: %w", registry.ErrUnavailable, err) // a watch can always be tried again
	}
	return err
}

// list tells all there is at a revision.
func (s *Store) list(ctx context.Context, r *reader, revision int64, fn func(registry.Batch) error) error {
	if !s.noStream {
		err := s.stream(ctx, r, revision, fn)
		if code(err) != codes.Unimplemented {
			return err
		}
	}
	return s.pages(ctx, r, revision, fn)
}

// stream lists with one call, which etcd has from 3.7 on. An older one says codes.Unimplemented before anything else.
func (s *Store) stream(ctx context.Context, r *reader, revision int64, fn func(registry.Batch) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	late := time.AfterFunc(answerTimeout, func() { cancel(errSilent) })
	defer late.Stop()
	prefix := string(s.keys)
	parts, err := pb.NewKVClient(r.cli.ActiveConnection()).RangeStream(ctx, &pb.RangeRequest{
		Key: []byte(prefix), RangeEnd: []byte(clientv3.GetPrefixRangeEnd(prefix)), Revision: revision,
	}, grpc.MaxCallRecvMsgSize(maxAnswer))
	if err != nil {
		return s.listFailure(ctx, err)
	}
	for {
		late.Reset(answerTimeout)
		part, err := parts.Recv()
		late.Stop()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return s.listFailure(ctx, err)
		}
		done := part.GetRangeResponse().GetHeader() != nil // the last part has one
		changes, err := r.listed(part.GetRangeResponse().GetKvs())
		if err != nil {
			return err
		}
		if err := fn(registry.Batch{Revision: revision, List: true, Done: done, Changes: changes}); err != nil || done {
			return err
		}
	}
}

var errSilent = errors.New("it is silent")

func (s *Store) listFailure(ctx context.Context, err error) error {
	if code(err) == codes.Unimplemented {
		return err
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return s.watchFailure("list", err)
}

// pages lists page by page. A page too large for one answer is asked for in halves.
func (s *Store) pages(ctx context.Context, r *reader, revision int64, fn func(registry.Batch) error) error {
	key, end := string(s.keys), clientv3.GetPrefixRangeEnd(string(s.keys))
	for limit := s.pageSize; ; {
		ask, cancel := context.WithTimeout(ctx, answerTimeout)
		page, err := r.cli.Get(ask, key, clientv3.WithRange(end), clientv3.WithRev(revision), clientv3.WithLimit(limit))
		cancel()
		if code(err) == codes.ResourceExhausted && limit > 1 {
			limit /= 2
			continue
		}
		if err != nil {
			return s.watchFailure("list", err)
		}
		changes, err := r.listed(page.Kvs)
		if err != nil {
			return err
		}
		if err := fn(registry.Batch{Revision: revision, List: true, Done: !page.More, Changes: changes}); err != nil || !page.More {
			return err
		}
		key = string(page.Kvs[len(page.Kvs)-1].Key) + "\x00"
	}
}

// answer is what a stream gave.
type answer struct {
	res *pb.WatchResponse
	err error
}

// follow tells what happens after revision from.
func (s *Store) follow(ctx context.Context, r *reader, from int64, head *pb.ResponseHeader, fn func(registry.Batch) error) error {
	// Without a leader a member would keep the stream open and say nothing.
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	stream, err := pb.NewWatchClient(r.cli.ActiveConnection()).Watch(ctx, grpc.MaxCallRecvMsgSize(maxAnswer))
	if err != nil {
		cancel()
		return s.watchFailure("watch", err)
	}
	answers := make(chan answer)
	done := make(chan struct{})
	go receiveWatch(ctx, stream, answers, done)
	defer func() {
		cancel()
		<-done
	}()

	// etcd says nothing of its progress to a watch whose first revision is still to come. So one that is at the present
	// starts there, and what it knows is left out again.
	prefix, start := string(s.keys), min(from+1, head.Revision)
	create := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key: []byte(prefix), RangeEnd: []byte(clientv3.GetPrefixRangeEnd(prefix)), StartRevision: start, Fragment: true,
	}}}
	progress := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}
	if err := stream.Send(create); err != nil {
		return s.sendFailure(ctx, answers, err)
	}
	ask := time.NewTicker(progressEvery)
	defer ask.Stop()
	silent := time.NewTimer(silence)
	defer silent.Stop()
	f := follower{reader: r, at: from, cluster: head.ClusterId}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-silent.C:
			return s.reach.failure("watch", errSilent)
		case <-ask.C:
			if err := stream.Send(progress); err != nil {
				return s.sendFailure(ctx, answers, err)
			}
		case a := <-answers:
			if a.err != nil {
				return s.watchFailure("watch", a.err)
			}
			if a.res.Created && !a.res.Canceled { // the reader need not wait for the first progress
				if err := stream.Send(progress); err != nil {
					return s.sendFailure(ctx, answers, err)
				}
			}
			b, ok, err := f.take(ctx, a.res)
			if err != nil {
				return err
			}
			if ok {
				if err := fn(b); err != nil {
					return err
				}
			}
			silent.Reset(silence) // the time that fn took is not etcd's
		}
	}
}

// receiveWatch passes on what a stream gives, until it or ctx ends.
func receiveWatch(ctx context.Context, stream pb.Watch_WatchClient, answers chan<- answer, done chan<- struct{}) {
	defer close(done)
	for {
		res, err := stream.Recv()
		select {
		case answers <- answer{res, err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// sendFailure is why a stream takes nothing any more: what it gave last says that.
func (s *Store) sendFailure(ctx context.Context, answers <-chan answer, err error) error {
	for errors.Is(err, io.EOF) {
		select {
		case a := <-answers:
			if a.err != nil {
				err = a.err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return s.watchFailure("watch", err)
}

// A follower makes batches of what a stream gives. It does no I/O of its own, but for names that etcd must be asked for.
type follower struct {
	reader  *reader
	at      int64 // the revision up to which all was told
	cluster uint64
	pending []*clientv3.Event // of one transaction that has not come completely
}

// take takes one answer; ok says that there is a batch to tell.
func (f *follower) take(ctx context.Context, res *pb.WatchResponse) (b registry.Batch, ok bool, err error) {
	switch {
	case res.Header.GetClusterId() != f.cluster:
		return b, false, fmt.Errorf("%w: cluster %x, before it was %x", registry.ErrReset, res.Header.GetClusterId(), f.cluster)
	case res.CompactRevision != 0:
		return b, false, fmt.Errorf("%w: %d, the oldest is %d", registry.ErrCompacted, f.at, res.CompactRevision)
	case res.Canceled:
		return b, false, f.reader.store.reach.failure("watch", fmt.Errorf("it ended the watch: %s", res.CancelReason))
	case res.Created:
		return b, false, nil
	case len(res.Events) == 0: // progress
		// A member that lags behind the cluster may be at less than we know. It says so again when it has caught up.
		if res.Header.Revision < f.at || len(f.pending) > 0 {
			return b, false, nil
		}
		f.at = res.Header.Revision
		return registry.Batch{Revision: f.at}, true, nil
	}
	known := 0
	for known < len(res.Events) && res.Events[known].Kv.ModRevision <= f.at {
		known++
	}
	events := whole(&f.pending, res.Events[known:], res.Fragment)
	if len(events) == 0 {
		return b, false, nil
	}
	changes, err := f.reader.followed(ctx, events)
	if err != nil {
		return b, false, err
	}
	f.at = events[len(events)-1].Kv.ModRevision
	return registry.Batch{Revision: f.at, Changes: changes}, true, nil
}

// whole returns the events of complete transactions: those of pending and the new ones, but for the last transaction
// if more of it may follow, which then is pending. Large answers come in fragments, cut wherever they are too long.
func whole(pending *[]*clientv3.Event, events []*clientv3.Event, more bool) []*clientv3.Event {
	all := append(*pending, events...)
	*pending = nil
	if !more || len(all) == 0 {
		return all
	}
	cut := len(all)
	for last := all[cut-1].Kv.ModRevision; cut > 0 && all[cut-1].Kv.ModRevision == last; {
		cut--
	}
	*pending = all[cut:len(all):len(all)]
	return all[:cut:cut]
}
