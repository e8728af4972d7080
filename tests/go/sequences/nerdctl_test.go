package sequences

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/transfer"
	transferimage "github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtime "github.com/opencontainers/runtime-spec/specs-go"
)

// pulled pulls the image in the client, as nerdctl does with servers that have no transfer service.
func pulled(t *testing.T, ctx context.Context, client *containerd.Client) containerd.Image {
	t.Helper()
	hosts := docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchAllHosts))
	found, err := client.Pull(ctx, os.Getenv("IMAGE"), containerd.WithPullUnpack, containerd.WithPullSnapshotter(snapshotter),
		containerd.WithResolver(docker.NewResolver(docker.ResolverOptions{Hosts: hosts})))
	must(t, err)
	return found
}

func TestNerdctl_PullByTransfer(t *testing.T) {
	ctx, client := node(t)
	version, err := client.Version(ctx)
	must(t, err)
	if strings.TrimPrefix(version.Version, "v") < "2" {
		t.Fatalf("nerdctl takes %q for a server without the transfer service", version.Version)
	}
	name := os.Getenv("IMAGE")
	source, err := registry.NewOCIRegistry(ctx, name, registry.WithDefaultScheme("http"))
	must(t, err)
	var lock sync.Mutex
	events := map[string]bool{}
	progress := func(p transfer.Progress) {
		lock.Lock()
		defer lock.Unlock()
		events[p.Event] = true
	}
	destination := transferimage.NewStore(name, transferimage.WithUnpack(platforms.DefaultSpec(), snapshotter))
	must(t, client.Transfer(ctx, source, destination, transfer.WithProgress(progress)))
	lock.Lock()
	// States that follow one another quickly may be told as the last one.
	for _, event := range []string{"saved", "Completed pull from OCI Registry (" + name + ")"} {
		if !events[event] {
			t.Errorf("no progress says %q: %v", event, events)
		}
	}
	lock.Unlock()

	record, err := client.ImageService().Get(ctx, name)
	must(t, err)
	found := read(t, ctx, client, record.Target)
	unpacked, err := containerd.NewImage(client, record).IsUnpacked(ctx, snapshotter)
	must(t, err)
	equal(t, "unpacked", unpacked, true)
	equal(t, "layers", len(found.manifest.Layers), 2)
}

func TestNerdctl_ImagesList(t *testing.T) {
	ctx, client := node(t)
	name := os.Getenv("IMAGE")
	pulled(t, ctx, client)
	for _, filters := range [][]string{{}, {"name==" + name}, {"name~=app"}, {"name==nothing", "name==" + name}} {
		found, err := client.ImageService().List(ctx, filters...)
		must(t, err)
		equal(t, strings.Join(filters, " "), len(found), 1)
	}
	record, err := client.ImageService().Get(ctx, name)
	must(t, err)
	size, err := record.Size(ctx, client.ContentStore(), platforms.Default())
	must(t, err)
	found := read(t, ctx, client, record.Target)
	expected := record.Target.Size + found.manifest.Config.Size
	for _, layer := range found.manifest.Layers {
		expected += layer.Size
	}
	equal(t, "size", size, expected)
	// Unpacked: the sum over the chain, walked by parents.
	store, sum := client.SnapshotService(snapshotter), int64(0)
	layers := 0
	for key := found.chain; key != ""; layers++ {
		usage, err := store.Usage(ctx, key)
		must(t, err)
		sum += usage.Size
		info, err := store.Stat(ctx, key)
		must(t, err)
		key = info.Parent
	}
	equal(t, "snapshots", layers, 2)
	if sum == 0 {
		t.Error("the snapshots have no size")
	}
}

func TestNerdctl_Tag(t *testing.T) {
	ctx, client := node(t)
	store := client.ImageService()
	source := pulled(t, ctx, client)
	tag := images.Image{Name: "docker.io/library/tag:1", Target: source.Target()}
	created, err := store.Create(ctx, tag)
	must(t, err)
	_, err = store.Create(ctx, tag)
	fails(t, "a second tag of that name", err, errdefs.IsAlreadyExists)
	// nerdctl overwrites a tag by deleting it first.
	must(t, store.Delete(ctx, tag.Name))
	again, err := store.Create(ctx, tag)
	must(t, err)
	equal(t, "target", again.Target.Digest, created.Target.Digest)
	tag.Labels = map[string]string{"a": "1"}
	updated, err := store.Update(ctx, tag, "labels.a")
	must(t, err)
	equal(t, "label", updated.Labels["a"], "1")
	_, err = store.Update(ctx, images.Image{Name: "docker.io/library/none:1", Target: tag.Target})
	fails(t, "an update of nothing", err, errdefs.IsNotFound)
}

func TestNerdctl_Remove(t *testing.T) {
	ctx, client := node(t)
	target := pulled(t, ctx, client).Target()
	store := client.ImageService()
	_, err := store.Create(ctx, images.Image{Name: "docker.io/library/other:1", Target: target})
	must(t, err)
	manifest := read(t, ctx, client, target).manifest
	same, err := store.List(ctx, "target.digest~=^"+target.Digest.String()+".*$")
	must(t, err)
	equal(t, "names of the image", len(same), 2)

	// The guard that nerdctl and containerd's collector of images use: delete only what it still is.
	other := target
	other.Digest = manifest.Config.Digest
	err = store.Delete(ctx, os.Getenv("IMAGE"), images.DeleteTarget(&other))
	fails(t, "a deletion of what it no longer is", err, errdefs.IsNotFound)
	must(t, store.Delete(ctx, os.Getenv("IMAGE"), images.SynchronousDelete()))
	equal(t, "the manifest while a name is left", exists(t, ctx, client.ContentStore(), target.Digest), true)
	must(t, store.Delete(ctx, "docker.io/library/other:1", images.SynchronousDelete()))
	for _, gone := range append(manifest.Layers, manifest.Config, target) {
		equal(t, gone.Digest.String(), exists(t, ctx, client.ContentStore(), gone.Digest), false)
	}
	fails(t, "a second deletion", store.Delete(ctx, os.Getenv("IMAGE")), errdefs.IsNotFound)
}

func TestNerdctl_Commit(t *testing.T) {
	ctx, client := node(t)
	base := read(t, ctx, client, pulled(t, ctx, client).Target())
	snapshots, store := client.SnapshotService(snapshotter), client.ContentStore()
	// What a container wrote. Its record keeps its snapshot.
	preparing, prepared := leased(t, ctx, client)
	mounts, err := snapshots.Prepare(preparing, "container", base.chain)
	must(t, err)
	spec, err := typeurl.MarshalAny(&runtime.Spec{Version: runtime.Version})
	must(t, err)
	_, err = client.ContainerService().Create(preparing, containers.Container{
		ID: "container", Image: os.Getenv("IMAGE"), Snapshotter: snapshotter, SnapshotKey: "container",
		Runtime: containers.RuntimeInfo{Name: "io.containerd.runc.v2"}, Spec: spec,
	})
	must(t, err)
	prepared()
	mounted(t, mounts, func(dir string) {
		equal(t, "hostname", contentOf(t, dir, "etc/hostname"), "orlop\n")
		must(t, os.WriteFile(filepath.Join(dir, "etc/new"), []byte("new"), 0o600))
		must(t, os.Remove(filepath.Join(dir, "etc/hostname")))
	})

	leasedCtx, release := leased(t, ctx, client)
	layer, err := rootfs.CreateDiff(leasedCtx, "container", snapshots, client.DiffService(), diff.WithMediaType(ocispec.MediaTypeImageLayerGzip))
	must(t, err)
	info, err := store.Info(leasedCtx, layer.Digest)
	must(t, err)
	diffID, err := images.GetDiffID(leasedCtx, store, layer)
	must(t, err)
	equal(t, "the diff ID that the differ noted", info.Labels["containerd.io/uncompressed"], diffID.String())

	// nerdctl makes the snapshot of the new layer itself, and meets one that is there.
	chain := identity.ChainID(append(append(base.config.RootFS.DiffIDs[:0:0], base.config.RootFS.DiffIDs...), diffID)).String()
	for range 2 {
		mounts, err = snapshots.Prepare(leasedCtx, "extract", base.chain)
		must(t, err)
		_, err = client.DiffService().Apply(leasedCtx, layer, mounts)
		must(t, err)
		if err = snapshots.Commit(leasedCtx, chain, "extract"); err != nil {
			break
		}
	}
	fails(t, "a second commit of the chain", err, errdefs.IsAlreadyExists)
	must(t, snapshots.Remove(leasedCtx, "extract"))

	target := layered(t, leasedCtx, store, base, layer, diffID, true)
	_, err = client.ImageService().Create(leasedCtx, images.Image{Name: "docker.io/library/committed:1", Target: target})
	must(t, err)
	release()
	// Nothing but the record and its labels hold it now; the deletion of another name collects.
	must(t, client.ImageService().Delete(ctx, os.Getenv("IMAGE"), images.SynchronousDelete()))
	committed, err := client.GetImage(ctx, "docker.io/library/committed:1")
	must(t, err)
	unpacked, err := committed.IsUnpacked(ctx, snapshotter)
	must(t, err)
	equal(t, "unpacked", unpacked, true)
	// Under a lease: nothing else keeps a view.
	looking, looked := leased(t, ctx, client)
	view, err := snapshots.View(looking, "look", chain)
	must(t, err)
	mounted(t, view, func(dir string) {
		equal(t, "new", contentOf(t, dir, "etc/new"), "new")
		if _, err := os.Lstat(filepath.Join(dir, "etc/hostname")); !os.IsNotExist(err) {
			t.Errorf("what the container removed: %v", err)
		}
	})
	must(t, snapshots.Remove(looking, "look"))
	looked()
	// In this order: without the container the collector may come first.
	must(t, snapshots.Remove(ctx, "container"))
	must(t, client.ContainerService().Delete(ctx, "container"))
}

func TestNerdctl_SaveAndLoad(t *testing.T) {
	ctx, client := node(t)
	target, name := pulled(t, ctx, client).Target(), os.Getenv("IMAGE")
	var saved bytes.Buffer
	must(t, client.Export(ctx, &saved, archive.WithImage(client.ImageService(), name), archive.WithPlatform(platforms.Default())))
	must(t, client.ImageService().Delete(ctx, name, images.SynchronousDelete()))
	equal(t, "the manifest after the removal", exists(t, ctx, client.ContentStore(), target.Digest), false)

	loaded, err := client.Import(ctx, bytes.NewReader(saved.Bytes()), containerd.WithImportPlatform(platforms.Default()))
	must(t, err)
	equal(t, "images", len(loaded), 1)
	equal(t, "name", loaded[0].Name, name)
	equal(t, "target", loaded[0].Target.Digest, target.Digest)
	again := containerd.NewImageWithPlatform(client, loaded[0], platforms.Default())
	must(t, again.Unpack(ctx, snapshotter))
	must(t, again.Unpack(ctx, snapshotter))
	unpacked, err := again.IsUnpacked(ctx, snapshotter)
	must(t, err)
	equal(t, "unpacked", unpacked, true)
	// Every blob is what its digest says.
	available, _, _, missing, err := images.Check(ctx, client.ContentStore(), target, platforms.Default())
	must(t, err)
	if !available || len(missing) > 0 {
		t.Errorf("missing: %v", missing)
	}
}

// A container in which nothing runs: its task is asked for, then its record goes, and its snapshot with it.
func TestNerdctl_RemoveContainer(t *testing.T) {
	ctx, client := node(t)
	_, err := client.NewContainer(ctx, "idle", containerd.WithSnapshotter(snapshotter),
		containerd.WithNewSnapshot("idle", pulled(t, ctx, client)), containerd.WithRuntime("io.containerd.runc.v2", nil),
		containerd.WithSpec(&runtime.Spec{Version: runtime.Version}))
	must(t, err)
	found, err := client.LoadContainer(ctx, "idle")
	must(t, err)
	_, err = found.Task(ctx, nil)
	fails(t, "the task", err, errdefs.IsNotFound)
	_, err = client.SnapshotService(snapshotter).Stat(ctx, "idle")
	must(t, err)
	must(t, found.Delete(ctx, containerd.WithSnapshotCleanup))
	_, err = client.LoadContainer(ctx, "idle")
	fails(t, "the container after its removal", err, errdefs.IsNotFound)
	_, err = client.SnapshotService(snapshotter).Stat(ctx, "idle")
	fails(t, "its snapshot after its removal", err, errdefs.IsNotFound)
}
