// Asks an image service what kubelet asks, in its order, with the types that Kubernetes publishes.
//
// Usage: cri ADDRESS IMAGE IMAGE-ID
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: cri ADDRESS IMAGE IMAGE-ID")
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := run(ctx, os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("all as kubelet expects it")
}

func run(ctx context.Context, address, name, id string) error {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return err
	}
	defer conn.Close()
	node := &node{images: cri.NewImageServiceClient(conn), runtime: cri.NewRuntimeServiceClient(conn)}
	for _, step := range []struct {
		name string
		do   func(context.Context, string, string) error
	}{
		{"start", node.start},
		{"pull", node.pull},
		{"list", node.list},
		{"collect", node.collect},
	} {
		if err := step.do(ctx, name, id); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		fmt.Println(step.name)
	}
	return nil
}

type node struct {
	images  cri.ImageServiceClient
	runtime cri.RuntimeServiceClient
}

// What kubelet asks before anything else.
func (n *node) start(ctx context.Context, _, _ string) error {
	version, err := n.runtime.Version(ctx, &cri.VersionRequest{Version: "0.1.0"})
	if err != nil {
		return err
	}
	if version.Version != "0.1.0" || version.RuntimeApiVersion != "v1" || version.RuntimeName == "" {
		return fmt.Errorf("version: %v", version)
	}
	state, err := n.runtime.Status(ctx, &cri.StatusRequest{Verbose: true})
	if err != nil {
		return err
	}
	conditions := map[string]*cri.RuntimeCondition{}
	for _, condition := range state.Status.Conditions {
		conditions[condition.Type] = condition
	}
	for _, kind := range []string{cri.RuntimeReady, cri.NetworkReady} {
		condition := conditions[kind]
		if condition == nil || condition.Status || condition.Reason == "" || condition.Message == "" {
			return fmt.Errorf("condition %s: %v", kind, condition)
		}
	}
	_, err = n.runtime.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{Id: "x"}})
	if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "Orlop") {
		return fmt.Errorf("ListContainers: %v", err)
	}
	_, err = n.used(ctx)
	return err
}

func (n *node) used(ctx context.Context) (uint64, error) {
	usage, err := n.images.ImageFsInfo(ctx, &cri.ImageFsInfoRequest{})
	if err != nil {
		return 0, err
	}
	for _, entries := range [][]*cri.FilesystemUsage{usage.ImageFilesystems, usage.ContainerFilesystems} {
		if len(entries) == 0 || entries[0].Timestamp <= 0 || entries[0].InodesUsed == nil {
			return 0, fmt.Errorf("file systems: %v", usage)
		}
		if _, err := os.Stat(entries[0].FsId.Mountpoint); err != nil {
			return 0, err
		}
	}
	return usage.ImageFilesystems[0].UsedBytes.Value, nil
}

func spec(name string) *cri.ImageSpec {
	return &cri.ImageSpec{Image: name, Annotations: map[string]string{"kubernetes.io/config.source": "api"}}
}

// Looks, pulls with the pod's sandbox, and looks again.
func (n *node) pull(ctx context.Context, name, id string) error {
	before, err := n.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: spec(name)})
	if err != nil || before.Image != nil {
		return fmt.Errorf("an image that is not there: %v, %v", before, err)
	}
	pulled, err := n.images.PullImage(ctx, &cri.PullImageRequest{
		Image: spec(name),
		Auth:  &cri.AuthConfig{},
		SandboxConfig: &cri.PodSandboxConfig{
			Metadata: &cri.PodSandboxMetadata{Name: "pod", Uid: "1", Namespace: "default"},
			Linux:    &cri.LinuxPodSandboxConfig{CgroupParent: "/kubepods"},
		},
	})
	if err != nil {
		return err
	}
	if pulled.ImageRef != id {
		return fmt.Errorf("pulled %s, expected %s", pulled.ImageRef, id)
	}
	after, err := n.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: spec(name), Verbose: true})
	if err != nil {
		return err
	}
	if after.Image.GetId() != id || after.Image.GetSize() == 0 || after.Info["info"] == "" {
		return fmt.Errorf("after the pull: %v", after)
	}
	_, err = n.images.PullImage(ctx, &cri.PullImageRequest{Image: spec(name + "-none")})
	if status.Code(err) != codes.NotFound {
		return fmt.Errorf("a tag that does not exist: %v", err)
	}
	return nil
}

// Lists in both ways, which must agree.
func (n *node) list(ctx context.Context, name, id string) error {
	listed, err := n.images.ListImages(ctx, &cri.ListImagesRequest{})
	if err != nil {
		return err
	}
	stream, err := n.images.StreamImages(ctx, &cri.StreamImagesRequest{})
	if err != nil {
		return err
	}
	var streamed []*cri.Image
	for {
		page, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		streamed = append(streamed, page.Images...)
	}
	if len(listed.Images) != 1 || len(streamed) != 1 || listed.Images[0].String() != streamed[0].String() {
		return fmt.Errorf("listed %v, streamed %v", listed.Images, streamed)
	}
	image := listed.Images[0]
	if image.Id != id || len(image.RepoTags) != 1 || image.RepoTags[0] != name || len(image.RepoDigests) != 1 ||
		image.Pinned || image.GetSpec().GetImage() != id {
		return fmt.Errorf("listed %v", image)
	}
	return nil
}

// Removes by ID and looks whether the disk grew.
func (n *node) collect(ctx context.Context, _, id string) error {
	before, err := n.used(ctx)
	if err != nil {
		return err
	}
	for range 2 {
		if _, err := n.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: spec(id)}); err != nil {
			return err
		}
	}
	after, err := n.used(ctx)
	if err != nil {
		return err
	}
	if before == 0 || after != 0 {
		return fmt.Errorf("%d bytes were used, %d after the removal", before, after)
	}
	return nil
}
