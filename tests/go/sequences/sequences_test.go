// Package sequences does what nerdctl and BuildKit do with a containerd, call for call in their order, through containerd's
// own client library.
//
// SERVER is the socket of the server under test, IMAGE the name of an image in a registry that speaks plain HTTP: two
// layers, of which the upper one has `etc/hostname`. The same tests run against `orlop serve` and against containerd, so
// that what they expect is what containerd does.
package sequences

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const snapshotter = "overlayfs"

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv("SERVER") == "" {
		fmt.Fprintln(os.Stderr, "skipped: SERVER does not name a socket")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// node connects to the server, in a namespace of the test's own.
func node(t *testing.T) (context.Context, *containerd.Client) {
	t.Helper()
	client, err := containerd.New(os.Getenv("SERVER"))
	must(t, err)
	t.Cleanup(func() { client.Close() })
	return namespaces.WithNamespace(t.Context(), t.Name()), client
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal[T comparable](t *testing.T, what string, found, expected T) {
	t.Helper()
	if found != expected {
		t.Errorf("%s: %v, not %v", what, found, expected)
	}
}

// fails says that an error is of a kind, and that there is one.
func fails(t *testing.T, what string, err error, kind func(error) bool) {
	t.Helper()
	if err == nil || !kind(err) {
		t.Errorf("%s: %v", what, err)
	}
}

// leased gives a context under a lease, and what ends the lease and waits for what goes with it.
func leased(t *testing.T, ctx context.Context, client *containerd.Client, options ...leases.Opt) (context.Context, func()) {
	t.Helper()
	lease, err := client.LeasesService().Create(ctx, append([]leases.Opt{leases.WithRandomID()}, options...)...)
	must(t, err)
	return leases.WithLease(ctx, lease.ID), func() {
		t.Helper()
		must(t, client.LeasesService().Delete(ctx, lease, leases.SynchronousDelete))
	}
}

// write puts a document into the content store, with labels.
func write(t *testing.T, ctx context.Context, store content.Store, mediaType string, document any, labels map[string]string) ocispec.Descriptor {
	t.Helper()
	raw, err := json.Marshal(document)
	must(t, err)
	descriptor := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	ref := "sequences-" + descriptor.Digest.String()
	must(t, content.WriteBlob(ctx, store, ref, bytes.NewReader(raw), descriptor, content.WithLabels(labels)))
	return descriptor
}

func exists(t *testing.T, ctx context.Context, store content.Store, wanted digest.Digest) bool {
	t.Helper()
	_, err := store.Info(ctx, wanted)
	if err != nil && !errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
	return err == nil
}

// image is what a record leads to on this platform.
type image struct {
	config   ocispec.Image
	manifest ocispec.Manifest
	chain    string
}

func read(t *testing.T, ctx context.Context, client *containerd.Client, target ocispec.Descriptor) image {
	t.Helper()
	store, found := client.ContentStore(), image{}
	var err error
	found.manifest, err = images.Manifest(ctx, store, target, platforms.Default())
	must(t, err)
	raw, err := content.ReadBlob(ctx, store, found.manifest.Config)
	must(t, err)
	must(t, json.Unmarshal(raw, &found.config))
	found.chain = identity.ChainID(found.config.RootFS.DiffIDs).String()
	return found
}

// mounted gives mounts as a directory for a moment.
func mounted(t *testing.T, mounts []mount.Mount, look func(dir string)) {
	t.Helper()
	must(t, mount.WithTempMount(context.Background(), mounts, func(dir string) error {
		look(dir)
		return nil
	}))
}

func contentOf(t *testing.T, dir, name string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, name))
	must(t, err)
	return string(raw)
}

// layered writes a manifest for the layers of an image and one more, as a builder does; the config holds its snapshots if
// it was unpacked.
func layered(t *testing.T, ctx context.Context, store content.Store, base image, layer ocispec.Descriptor, diffID digest.Digest, unpacked bool) ocispec.Descriptor {
	t.Helper()
	config := base.config
	config.RootFS.DiffIDs = append(append([]digest.Digest{}, config.RootFS.DiffIDs...), diffID)
	holds := map[string]string{}
	if unpacked {
		holds["containerd.io/gc.ref.snapshot."+snapshotter] = identity.ChainID(config.RootFS.DiffIDs).String()
	}
	configDescriptor := write(t, ctx, store, ocispec.MediaTypeImageConfig, config, holds)
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    configDescriptor,
		Layers:    append(append([]ocispec.Descriptor{}, base.manifest.Layers...), layer),
	}
	labels := map[string]string{"containerd.io/gc.ref.content.0": configDescriptor.Digest.String()}
	for index, layer := range manifest.Layers {
		labels[fmt.Sprintf("containerd.io/gc.ref.content.%d", index+1)] = layer.Digest.String()
	}
	return write(t, ctx, store, ocispec.MediaTypeImageManifest, manifest, labels)
}
