package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/limpet-mesh/limpet/registry"
)

// A reach knows why etcd cannot be reached. The etcd client waits for a connection as long as a call may take, and then says no more
// than that the time is over; what became of the attempts to connect is known one layer below.
type reach struct {
	endpoints string
	trouble   atomic.Pointer[string] // of the last attempt, nil after a call that was answered
}

// options are gRPC's, to be given to the etcd client.
func (r *reach) options() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			err := call(ctx, method, req, reply, cc, opts...)
			r.note(err)
			return err
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			stream, err := open(ctx, desc, cc, method, opts...)
			r.note(err)
			return stream, err
		}),
	}
}

// note takes in the outcome of one call.
func (r *reach) note(err error) {
	switch status.Code(err) {
	case codes.DeadlineExceeded, codes.Canceled, codes.Unavailable:
		if s, ok := transportError(status.Convert(err).Message()); ok {
			r.trouble.Store(&s)
		}
	default:
		r.trouble.Store(nil) // it was answered
	}
}

// transportError finds, in what gRPC says of a call that found no connection, what became of the last attempt to make one.
func transportError(s string) (string, bool) {
	_, s, ok := strings.Cut(s, `connection error: desc = `)
	if !ok {
		return "", false
	}
	if quoted, err := strconv.QuotedPrefix(s); err == nil {
		s, _ = strconv.Unquote(quoted)
	}
	s = strings.TrimPrefix(s, "transport: ")
	return strings.TrimPrefix(s, "Error while dialing: "), true
}

func unavailable(doing string, err error) error {
	return fmt.Errorf("%w: etcd: %s: %w", registry.ErrUnavailable, doing, err)
}

// failure turns an error of the etcd client into one of the registry. What certainly changed nothing and would fail again
// is passed on as it is; all else is ErrUnavailable, with where etcd should be, and what to do about it where that is known.
func (r *reach) failure(doing string, err error) error {
	at := "etcd at " + r.endpoints + ": " + doing
	unavailable := func(err error) error { return fmt.Errorf("%w: %s: %w", registry.ErrUnavailable, at, err) }
	switch {
	case err == nil:
		return nil
	case errors.Is(err, registry.ErrUnavailable), errors.Is(err, ErrSchema):
		return err
	case errors.Is(err, rpctypes.ErrNoSpace):
		return unavailable(fmt.Errorf("%w: etcd takes no more writes: compact and defragment it, or raise --quota-backend-bytes, "+
			"then run etcdctl alarm disarm", err))
	case errors.Is(err, rpctypes.ErrPermissionDenied), errors.Is(err, rpctypes.ErrAuthFailed), errors.Is(err, rpctypes.ErrUserEmpty),
		errors.Is(err, rpctypes.ErrInvalidAuthToken), errors.Is(err, rpctypes.ErrAuthNotEnabled):
		return unavailable(fmt.Errorf("%w: check the store's user name and password, and that its role may read and write %s", err, root))
	case errors.Is(err, rpctypes.ErrTooManyOps):
		return fmt.Errorf("etcdstore: %s: %w: run etcd with --max-txn-ops of at least %d", doing, err, maxTxnOps)
	}
	switch code(err) {
	case codes.InvalidArgument, codes.FailedPrecondition, codes.OutOfRange, codes.Unimplemented:
		return fmt.Errorf("etcdstore: %s: %w", doing, err)
	}
	if why := r.trouble.Load(); why != nil && !errors.Is(err, context.Canceled) {
		return unavailable(fmt.Errorf("cannot connect: %s: start etcd there or correct the address, and whether it is http or https (%w)", *why, err))
	}
	return unavailable(err)
}

// code is the gRPC status of an error of the etcd client.
func code(err error) codes.Code {
	var e rpctypes.EtcdError
	if errors.As(err, &e) {
		return e.Code()
	}
	return status.Code(err)
}
