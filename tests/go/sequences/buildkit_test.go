package sequences

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// flat is a lease that holds what is added to it and nothing that its labels name.
func flat() leases.Opt {
	return leases.WithLabels(map[string]string{"containerd.io/gc.flat": time.Now().UTC().Format(time.RFC3339Nano)})
}

// temporary is a lease that goes by itself if the builder dies.
func temporary() leases.Opt {
	return func(lease *leases.Lease) error {
		labels := map[string]string{"buildkit/lease.temporary": time.Now().UTC().Format(time.RFC3339Nano)}
		if err := leases.WithLabels(labels)(lease); err != nil {
			return err
		}
		return leases.WithExpiration(time.Hour)(lease)
	}
}

// What a worker asks a server before it begins: who it is, on what it runs, and whether it has a runtime, loaded or not.
func TestBuildKit_WorkerBegins(t *testing.T) {
	ctx, client := node(t)
	server, err := client.IntrospectionService().Server(ctx)
	must(t, err)
	if server.UUID == "" {
		t.Error("the server has no UUID")
	}
	differs, err := client.IntrospectionService().Plugins(ctx, "type==io.containerd.differ.v1")
	must(t, err)
	platforms := 0
	for _, differ := range differs.Plugins {
		platforms += len(differ.Platforms)
	}
	if platforms == 0 {
		t.Error("no differ says for which platform it is")
	}
	runtimes, err := client.IntrospectionService().Plugins(ctx, "type==io.containerd.runtime.v1", "type==io.containerd.runtime.v2")
	must(t, err)
	if len(runtimes.Plugins) == 0 {
		t.Error("no runtime is listed")
	}
}

// A build step: a snapshot under a temporary lease, its diff as a layer, both handed to a flat lease that is the cache
// record; then the temporary lease goes and the cache stays.
func TestBuildKit_BuildStepIsCached(t *testing.T) {
	ctx, client := node(t)
	base := read(t, ctx, client, pulled(t, ctx, client).Target())
	store, layers := client.ContentStore(), client.SnapshotService(snapshotter)
	build, end := leased(t, ctx, client, temporary())

	labels := snapshots.WithLabels(map[string]string{"buildkit/step": "run"})
	mounts, err := layers.Prepare(build, "step", base.chain, labels)
	must(t, err)
	_, err = layers.Prepare(build, "step", base.chain)
	fails(t, "a second step of that key", err, errdefs.IsAlreadyExists)
	mounted(t, mounts, func(dir string) { must(t, os.WriteFile(filepath.Join(dir, "built"), []byte("built"), 0o644)) })
	must(t, layers.Commit(build, "step-done", "step", labels))
	_, err = layers.Stat(build, "step")
	fails(t, "the active snapshot after its commit", err, errdefs.IsNotFound)

	lower, err := layers.View(build, "lower", base.chain)
	must(t, err)
	upper, err := layers.View(build, "upper", "step-done")
	must(t, err)
	layer, err := client.DiffService().Compare(build, lower, upper)
	must(t, err)
	info, err := store.Info(build, layer.Digest)
	must(t, err)
	if info.Labels["containerd.io/uncompressed"] == "" {
		t.Errorf("the differ noted no diff ID: %v", info.Labels)
	}
	for _, key := range []string{"lower", "upper"} {
		must(t, layers.Remove(build, key))
	}

	cache, err := client.LeasesService().Create(ctx, leases.WithID("cache-record"), flat())
	must(t, err)
	for _, resource := range []leases.Resource{
		{ID: "step-done", Type: "snapshots/" + snapshotter},
		{ID: layer.Digest.String(), Type: "content"},
	} {
		must(t, client.LeasesService().AddResource(ctx, cache, resource))
		must(t, client.LeasesService().AddResource(ctx, cache, resource))
	}
	end()
	listed, err := client.LeasesService().ListResources(ctx, cache)
	must(t, err)
	equal(t, "resources", len(listed), 2)
	equal(t, "the layer in the cache", exists(t, ctx, store, layer.Digest), true)
	found, err := layers.Stat(ctx, "step-done")
	must(t, err)
	equal(t, "label", found.Labels["buildkit/step"], "run")
	// The parent is needed by its child, lease or not.
	fails(t, "the parent's removal", layers.Remove(ctx, base.chain), errdefs.IsFailedPrecondition)

	must(t, client.LeasesService().Delete(ctx, cache, leases.SynchronousDelete))
	equal(t, "the layer without the cache", exists(t, ctx, store, layer.Digest), false)
	_, err = layers.Stat(ctx, "step-done")
	fails(t, "the snapshot without the cache", err, errdefs.IsNotFound)
}

// A flat lease holds the blob that was added to it and not what the blob's labels name; a lease that is not flat does.
func TestBuildKit_FlatLeasesHoldNoChildren(t *testing.T) {
	for _, holds := range []bool{false, true} {
		ctx, client := node(t)
		store := client.ContentStore()
		build, end := leased(t, ctx, client)
		child := write(t, build, store, ocispec.MediaTypeImageConfig, map[string]any{"of": t.Name(), "holds": holds}, nil)
		parent := write(t, build, store, ocispec.MediaTypeImageManifest, map[string]any{"child": child.Digest},
			map[string]string{"containerd.io/gc.ref.content.0": child.Digest.String()})
		options := []leases.Opt{leases.WithRandomID()}
		if !holds {
			options = append(options, flat())
		}
		lease, err := client.LeasesService().Create(ctx, options...)
		must(t, err)
		must(t, client.LeasesService().AddResource(ctx, lease, leases.Resource{ID: parent.Digest.String(), Type: "content"}))
		end()
		equal(t, "the parent", exists(t, ctx, store, parent.Digest), true)
		equal(t, "the child", exists(t, ctx, store, child.Digest), holds)
		must(t, client.LeasesService().Delete(ctx, lease, leases.SynchronousDelete))
		equal(t, "the parent at the end", exists(t, ctx, store, parent.Digest), false)
	}
}

// The writer as BuildKit's puller uses it: one ref, taken by one at a time, resumed, and committed with labels.
func TestBuildKit_WriterIsResumed(t *testing.T) {
	ctx, client := node(t)
	ctx, end := leased(t, ctx, client, temporary())
	store := client.ContentStore()
	body := bytes.Repeat([]byte("layer "), 50_000)
	descriptor := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(body), Size: int64(len(body))}
	options := []content.WriterOpt{content.WithRef("layer-1"), content.WithDescriptor(descriptor)}
	writer, err := store.Writer(ctx, options...)
	must(t, err)
	_, err = store.Writer(ctx, options...)
	fails(t, "a second writer on one ref", err, errdefs.IsUnavailable)
	half := len(body) / 2
	_, err = writer.Write(body[:half])
	must(t, err)
	// Its answer says that the bytes are there.
	status, err := writer.Status()
	must(t, err)
	equal(t, "offset", status.Offset, int64(half))
	must(t, writer.Close())

	listed, err := store.ListStatuses(ctx, "ref==layer-1")
	must(t, err)
	equal(t, "writes in progress", len(listed), 1)
	writer, err = content.OpenWriter(ctx, store, options...)
	must(t, err)
	status, err = writer.Status()
	must(t, err)
	equal(t, "offset after the resume", status.Offset, int64(half))
	_, err = io.Copy(writer, bytes.NewReader(body[half:]))
	must(t, err)
	err = writer.Commit(ctx, descriptor.Size, digest.FromString("another"))
	fails(t, "a commit under a wrong digest", err, errdefs.IsFailedPrecondition)
	must(t, writer.Close())
	writer, err = content.OpenWriter(ctx, store, options...)
	must(t, err)
	status, err = writer.Status()
	must(t, err)
	equal(t, "offset after the refusal", status.Offset, int64(len(body)))
	labels := map[string]string{"containerd.io/distribution.source.registry.example": "team/app"}
	must(t, writer.Commit(ctx, descriptor.Size, descriptor.Digest, content.WithLabels(labels)))
	must(t, writer.Close())
	_, err = store.Writer(ctx, content.WithRef("layer-2"), content.WithDescriptor(descriptor))
	fails(t, "a writer of what is there", err, errdefs.IsAlreadyExists)

	// BuildKit notes more repositories, and the diff ID, afterwards.
	info, err := store.Update(ctx, content.Info{Digest: descriptor.Digest, Labels: map[string]string{
		"containerd.io/uncompressed": descriptor.Digest.String(),
	}}, "labels.containerd.io/uncompressed")
	must(t, err)
	equal(t, "labels", len(info.Labels), 2)
	reader, err := store.ReaderAt(ctx, descriptor)
	must(t, err)
	part := make([]byte, 12)
	_, err = reader.ReadAt(part, 6)
	must(t, err)
	equal(t, "a part", string(part), "layer layer ")
	must(t, reader.Close())
	end()
	equal(t, "the layer after the build", exists(t, ctx, store, descriptor.Digest), false)
}

// The image exporter: documents under the build's lease, then a record that replaces what had the name.
func TestBuildKit_ExportReplacesTheName(t *testing.T) {
	ctx, client := node(t)
	base := read(t, ctx, client, pulled(t, ctx, client).Target())
	store := client.ContentStore()
	name := "docker.io/library/built:latest"
	var before digest.Digest
	for round := range 2 {
		build, end := leased(t, ctx, client, temporary())
		raw := bytes.Repeat([]byte{byte(round)}, 1024)
		layer := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(raw), Size: 1024}
		must(t, content.WriteBlob(build, store, "layer", bytes.NewReader(raw), layer))
		target := layered(t, build, store, base, layer, layer.Digest, false)
		record := images.Image{Name: name, Target: target, CreatedAt: time.Now()}
		if _, err := client.ImageService().Update(build, record); err != nil {
			fails(t, "an update of a name that is not there", err, errdefs.IsNotFound)
			_, err = client.ImageService().Create(build, record)
			must(t, err)
		}
		end()
		for _, needed := range append(read(t, ctx, client, target).manifest.Layers, target) {
			equal(t, needed.Digest.String(), exists(t, ctx, store, needed.Digest), true)
		}
		if round > 0 {
			equal(t, "what had the name", exists(t, ctx, store, before), false)
		}
		before = target.Digest
	}
	// Snapshots of the base serve both.
	usage, err := client.SnapshotService(snapshotter).Usage(ctx, base.chain)
	must(t, err)
	if usage.Inodes == 0 {
		t.Errorf("no usage: %+v", usage)
	}
}
