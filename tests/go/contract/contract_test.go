// Package contract runs containerd's own suites for content stores and snapshotters against `orlop serve`, through
// containerd's own gRPC clients.
//
// ORLOP_BIN names the program. Every case has a root and a daemon of its own.
package contract

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	contentsuite "github.com/containerd/containerd/v2/core/content/testsuite"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshotsuite "github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/containerd/v2/pkg/namespaces"
)

// The snapshot suite mounts, and asks for -test.root before it does.
func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv("ORLOP_BIN") == "" {
		fmt.Fprintln(os.Stderr, "skipped: ORLOP_BIN does not name an orlop")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// serve starts a daemon on a root below dir, waits until it answers and dials one of its sockets: "s", or "r", the raw one.
func serve(dir, surface string) (*containerd.Client, func() error, error) {
	// A socket's path must be short.
	sockets, err := os.MkdirTemp("/tmp", "orlop")
	if err != nil {
		return nil, nil, err
	}
	socket := filepath.Join(sockets, surface)
	command := exec.Command(os.Getenv("ORLOP_BIN"), "serve", "--root", filepath.Join(dir, "root"),
		"--socket", filepath.Join(sockets, "s"), "--raw-socket", filepath.Join(sockets, "r"))
	var log strings.Builder
	command.Stdout, command.Stderr = &log, &log
	if err := command.Start(); err != nil {
		return nil, nil, err
	}
	stop := func() error {
		command.Process.Signal(syscall.SIGTERM)
		err := command.Wait()
		return errors.Join(err, os.RemoveAll(sockets))
	}
	// The file is there a moment before anybody listens.
	deadline := time.Now().Add(time.Minute)
	for {
		connection, err := net.Dial("unix", socket)
		if err == nil {
			connection.Close()
			break
		}
		if time.Now().After(deadline) {
			return nil, nil, errors.Join(err, stop(), errors.New(log.String()))
		}
		time.Sleep(10 * time.Millisecond)
	}
	client, err := containerd.New(socket)
	if err != nil {
		return nil, nil, errors.Join(err, stop(), errors.New(log.String()))
	}
	return client, func() error { return errors.Join(client.Close(), stop()) }, nil
}

var count atomic.Int32

// leased gives a context of a namespace, its own or the shared one, under a lease of its own.
func leased(client *containerd.Client) contentsuite.ContextWrapper {
	return func(ctx context.Context, sharedNS bool) (context.Context, func(context.Context) error, error) {
		number := count.Add(1)
		name := fmt.Sprintf("testing-%d", number)
		if sharedNS {
			name = "shared"
			labels := map[string]string{"containerd.io/namespace.shareable": "true"}
			_ = client.NamespaceService().Create(ctx, name, labels)
		}
		ctx = namespaces.WithNamespace(ctx, name)
		lease, err := client.LeasesService().Create(ctx, leases.WithID(fmt.Sprintf("lease-%d", number)))
		if err != nil {
			return nil, nil, err
		}
		return leases.WithLease(ctx, lease.ID), func(ctx context.Context) error {
			return client.LeasesService().Delete(ctx, lease)
		}, nil
	}
}

func contentStore(ctx context.Context, root string) (context.Context, content.Store, func() error, error) {
	client, stop, err := serve(root, "s")
	if err != nil {
		return nil, nil, nil, err
	}
	wrap := leased(client)
	ctx, release, err := wrap(ctx, false)
	if err != nil {
		return nil, nil, nil, errors.Join(err, stop())
	}
	ctx = contentsuite.SetContextWrapper(ctx, wrap)
	return ctx, client.ContentStore(), func() error { return errors.Join(release(ctx), stop()) }, nil
}

func TestContent(t *testing.T) {
	contentsuite.ContentSuite(t, "orlop", contentStore)
}

func TestContentAcrossNamespaces(t *testing.T) {
	contentsuite.ContentCrossNSSharedSuite(t, "orlop", contentStore)
}

// rawContent has neither namespaces nor leases, as containerd calls a content store that is its plugin.
func rawContent(ctx context.Context, root string) (context.Context, content.Store, func() error, error) {
	client, stop, err := serve(root, "r")
	if err != nil {
		return nil, nil, nil, err
	}
	return ctx, client.ContentStore(), stop, nil
}

func TestContentOfRawSocket(t *testing.T) {
	contentsuite.ContentSuite(t, "orlop", rawContent)
}

func snapshotter(surface, name string) func(context.Context, string) (snapshots.Snapshotter, func() error, error) {
	return func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		client, stop, err := serve(root, surface)
		if err != nil {
			return nil, nil, err
		}
		return client.SnapshotService(name), stop, nil
	}
}

func TestOverlayfs(t *testing.T) {
	snapshotsuite.SnapshotterSuite(t, "overlayfs", snapshotter("s", "overlayfs"))
}

func TestErofs(t *testing.T) {
	snapshotsuite.SnapshotterSuite(t, "erofs", snapshotter("s", "erofs"))
}

func TestNative(t *testing.T) {
	snapshotsuite.SnapshotterSuite(t, "native", snapshotter("s", "native"))
}

func TestOverlayfsOfRawSocket(t *testing.T) {
	snapshotsuite.SnapshotterSuite(t, "overlayfs", snapshotter("r", "orlop-overlay"))
}

func TestErofsOfRawSocket(t *testing.T) {
	snapshotsuite.SnapshotterSuite(t, "erofs", snapshotter("r", "orlop-erofs"))
}

func TestNativeOfRawSocket(t *testing.T) {
	snapshotsuite.SnapshotterSuite(t, "native", snapshotter("r", "orlop-native"))
}
