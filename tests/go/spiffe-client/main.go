// A workload that knows nothing of Alcazar: go-spiffe alone, as its own examples use it. It finds the Workload API by
// SPIFFE_ENDPOINT_SOCKET, says what it sees as one JSON object a line, and ends when it is asked to.
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

const usage = `usage:
  spiffe-client watch                        every X.509 context
  spiffe-client bundles                      the X.509 and the JWT bundles, once
  spiffe-client jwt AUDIENCE [SPIFFE-ID]     tokens
  spiffe-client validate AUDIENCE TOKEN      whose it is
  spiffe-client serve ADDRESS PEER           answers mutual TLS of this peer
  spiffe-client call ADDRESS PEER            calls over mutual TLS, each time anew
  spiffe-client pause                        nothing, until it is asked to end`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	arg := func(n int) string {
		if n < len(args) {
			return args[n]
		}
		return ""
	}
	switch {
	case arg(0) == "watch" && len(args) == 1:
		return watch(ctx)
	case arg(0) == "bundles" && len(args) == 1:
		return bundles(ctx)
	case arg(0) == "jwt" && len(args) >= 2:
		return tokens(ctx, arg(1), arg(2))
	case arg(0) == "validate" && len(args) == 3:
		return validate(ctx, arg(1), arg(2))
	case arg(0) == "pause" && len(args) == 1:
		<-ctx.Done()
		return nil
	case (arg(0) == "serve" || arg(0) == "call") && len(args) == 3:
		return mutual(ctx, arg(0) == "serve", arg(1), arg(2))
	default:
		return errors.New(usage)
	}
}

var speaking sync.Mutex

func say(what map[string]any) {
	speaking.Lock()
	defer speaking.Unlock()
	_ = json.NewEncoder(os.Stdout).Encode(what)
}

type watcher struct{ ctx context.Context }

func (watcher) OnX509ContextUpdate(update *workloadapi.X509Context) {
	ids, serials := []string{}, []string{}
	for _, svid := range update.SVIDs {
		ids = append(ids, svid.ID.String())
		serials = append(serials, svid.Certificates[0].SerialNumber.Text(16))
	}
	roots := map[string]int{}
	for _, bundle := range update.Bundles.Bundles() {
		roots[bundle.TrustDomain().Name()] = len(bundle.X509Authorities())
	}
	say(map[string]any{"ids": ids, "serials": serials, "roots": roots})
}

func (w watcher) OnX509ContextWatchError(err error) {
	if w.ctx.Err() == nil {
		say(map[string]any{"error": err.Error()})
	}
}

func watch(ctx context.Context) error {
	err := workloadapi.WatchX509Context(ctx, watcher{ctx})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func bundles(ctx context.Context) error {
	x509, err := workloadapi.FetchX509Bundles(ctx)
	if err != nil {
		return err
	}
	jwt, err := workloadapi.FetchJWTBundles(ctx)
	if err != nil {
		return err
	}
	roots, keys := map[string]int{}, map[string]int{}
	for _, bundle := range x509.Bundles() {
		roots[bundle.TrustDomain().Name()] = len(bundle.X509Authorities())
	}
	for _, bundle := range jwt.Bundles() {
		keys[bundle.TrustDomain().Name()] = len(bundle.JWTAuthorities())
	}
	say(map[string]any{"roots": roots, "keys": keys})
	return nil
}

func tokens(ctx context.Context, audience, subject string) error {
	params := jwtsvid.Params{Audience: audience}
	if subject != "" {
		id, err := spiffeid.FromString(subject)
		if err != nil {
			return err
		}
		params.Subject = id
	}
	svids, err := workloadapi.FetchJWTSVIDs(ctx, params)
	if err != nil {
		return err
	}
	// A JWT source checks it by the bundles, as whoever is shown a token does.
	source, err := workloadapi.NewJWTSource(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	for _, svid := range svids {
		checked, err := jwtsvid.ParseAndValidate(svid.Marshal(), source, []string{audience})
		if err != nil {
			return err
		}
		say(map[string]any{"id": checked.ID.String(), "token": svid.Marshal()})
	}
	return nil
}

func validate(ctx context.Context, audience, token string) error {
	svid, err := workloadapi.ValidateJWTSVID(ctx, token, audience)
	if err != nil {
		return err
	}
	say(map[string]any{"id": svid.ID.String(), "claims": svid.Claims})
	return nil
}

func mutual(ctx context.Context, serves bool, address, peer string) error {
	id, err := spiffeid.FromString(peer)
	if err != nil {
		return err
	}
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	authorize := tlsconfig.AuthorizeID(id)
	if serves {
		return serve(ctx, address, tlsconfig.MTLSServerConfig(source, source, authorize))
	}
	return call(ctx, address, tlsconfig.MTLSClientConfig(source, source, authorize))
}

func serve(ctx context.Context, address string, config *tls.Config) error {
	listener, err := tls.Listen("tcp", address, config)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { _ = listener.Close() })
	say(map[string]any{"address": listener.Addr().String()})
	for {
		connection, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		go func() {
			defer connection.Close()
			if _, err := io.Copy(connection, connection); err != nil {
				say(map[string]any{"error": err.Error()})
			}
		}()
	}
}

func call(ctx context.Context, address string, config *tls.Config) error {
	var answered atomic.Int64
	seen := map[string]bool{}
	for ctx.Err() == nil {
		serial, err := once(address, config)
		switch {
		case err != nil:
			say(map[string]any{"error": err.Error(), "answered": answered.Load()})
			time.Sleep(50 * time.Millisecond)
		default:
			answered.Add(1)
			if !seen[serial] {
				seen[serial] = true
				say(map[string]any{"serial": serial, "answered": answered.Load()})
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	say(map[string]any{"answered": answered.Load(), "over": true})
	return nil
}

// A handshake of its own each time: what was resumed would prove nothing of the certificates of now.
func once(address string, config *tls.Config) (string, error) {
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	connection, err := tls.DialWithDialer(dialer, "tcp", address, config)
	if err != nil {
		return "", err
	}
	defer connection.Close()
	_ = connection.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := connection.Write([]byte("hello")); err != nil {
		return "", err
	}
	answer := make([]byte, 5)
	if _, err := io.ReadFull(connection, answer); err != nil {
		return "", err
	}
	return connection.ConnectionState().PeerCertificates[0].SerialNumber.Text(16), nil
}
