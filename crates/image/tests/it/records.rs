//! Names and hash references: tagging, removing by plan, what comes back.

use crate::common::{Made, Node, Shelf, layers, on};
use orlop_image::{Error, ListRequest, PullRequest, RemoveRequest};
use orlop_metadata::{ImageChange, Labels};
use orlop_oci::Descriptor;

/// A node with one image pulled; its name, image ID and digest reference.
async fn pulled() -> (Node, Shelf, String, String, String) {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let image = made.image("amd64", &layers());
    shelf.push(&made, "team/app:v1", &image).await;
    let name = shelf.name("team/app:v1");
    node.pull(&name).await.unwrap();
    let digest_name = shelf.name(&format!("team/app@{}", image.digest));
    (node, shelf, name, made.image_id(&image), digest_name)
}

fn removal(name: &str) -> RemoveRequest {
    RemoveRequest { names: vec![name.to_owned()], ..RemoveRequest::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_the_last_name_takes_everything_and_undo_brings_it_back() {
    let (node, _shelf, name, id, digest_name) = pulled().await;
    let plan = node.images.plan_remove(&node.scope, &removal(&name)).await.unwrap();
    let mut all = vec![name.clone(), id, digest_name];
    all.sort();
    assert_eq!(plan.records, all);
    assert!(plan.returns.is_empty() && plan.in_use.is_empty() && plan.unpullable.is_empty(), "{plan:?}");
    assert_eq!((plan.blobs.len(), plan.snapshots.len()), (5, 3));
    assert_eq!(plan.freed_now, 0);
    assert!(plan.freed_when_trash_empties > 700_000);

    let execute = RemoveRequest { plan: Some(plan.hash.clone()), ..removal(&name) };
    let removed = node.images.remove(&node.scope, &execute).await.unwrap();
    assert_eq!(removed.plan, plan);
    assert!(node.names().is_empty());
    assert!(node.store().content(&node.scope).find(&[]).unwrap().is_empty());

    node.images.undo(&node.scope, removed.trash.as_deref()).await.unwrap();
    assert_eq!(node.names(), all);
    assert_eq!(node.store().content(&node.scope).find(&[]).unwrap().len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hash_reference_deleted_by_hand_comes_back_and_the_plan_says_so() {
    let (node, _shelf, name, id, digest_name) = pulled().await;
    let before = node.names();
    for hash in [id, digest_name] {
        let plan = node.images.plan_remove(&node.scope, &removal(&hash)).await.unwrap();
        assert_eq!(plan.returns.len(), 1);
        assert_eq!(plan.returns[0].name, hash);
        assert_eq!(plan.returns[0].reason, format!("{name} needs it"));
        assert_eq!((plan.freed_when_trash_empties, plan.blobs.len()), (0, 0));
        let removed = node.images.remove(&node.scope, &removal(&hash)).await.unwrap();
        assert_eq!(removed.returned, [hash]);
        assert_eq!(node.names(), before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_plan_is_refused() {
    let (node, _shelf, name, ..) = pulled().await;
    let plan = node.images.plan_remove(&node.scope, &removal(&name)).await.unwrap();
    node.images.tag(&node.scope, &name, &["example.com/other:1".to_owned()], false).await.unwrap();
    let execute = RemoveRequest { plan: Some(plan.hash.clone()), ..removal(&name) };
    let error = node.images.remove(&node.scope, &execute).await.unwrap_err();
    assert!(matches!(&error, Error::StalePlan { given, .. } if *given == plan.hash), "{error}");
    assert!(node.names().contains(&name));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_brings_its_digest_reference_and_removing_one_name_leaves_the_image() {
    let (node, _shelf, name, id, digest_name) = pulled().await;
    let written = node.images.tag(&node.scope, &name, &["example.com/other:1".to_owned()], false).await.unwrap();
    assert_eq!(written.len(), 3);
    assert_eq!(written[0], id);
    let plan = node.images.plan_remove(&node.scope, &removal(&name)).await.unwrap();
    assert_eq!(plan.records, [name.clone(), digest_name.clone()]);
    assert_eq!(plan.freed_when_trash_empties, 0);
    assert!(plan.in_use[0].reason.contains("5 of its blobs stay"), "{plan:?}");
    node.images.remove(&node.scope, &removal(&name)).await.unwrap();
    assert!(node.names().contains(&id));
    assert!(!node.names().contains(&digest_name));
    assert_eq!(node.names().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn pinned_images_go_only_by_force() {
    let (node, _shelf, name, ..) = pulled().await;
    assert_eq!(node.images.pin(&node.scope, &name, true).await.unwrap().len(), 3);
    let error = node.images.remove(&node.scope, &removal(&name)).await.unwrap_err();
    assert!(matches!(error, Error::Pinned(_)), "{error}");
    let forced = RemoveRequest { force: true, no_trash: true, ..removal(&name) };
    node.images.remove(&node.scope, &forced).await.unwrap();
    assert!(node.names().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_row_an_image_and_any_identifier_finds_it() {
    let (node, _shelf, name, id, digest_name) = pulled().await;
    let rows = node.images.images(&node.scope, &ListRequest::default()).await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].names, std::slice::from_ref(&name));
    assert_eq!(rows[0].hash_references.len(), 2);
    assert!(rows[0].size.compressed > 0 && rows[0].size.unpacked > 0);
    assert_eq!(rows[0].size.unique, rows[0].size.compressed + rows[0].size.unpacked);
    let records = node.images.records(&node.scope, &ListRequest::default()).await.unwrap();
    assert_eq!(records.len(), 3);
    assert!(records.iter().all(|r| r.size == records[0].size && r.image_id == rows[0].image_id));
    let hex = id.strip_prefix("sha256:").unwrap();
    for text in [&name, &id, &digest_name, hex, &hex[..12], &id[..20]] {
        let found = node.images.resolve_name(&node.scope, text).await.unwrap();
        assert_eq!(found.image_id.unwrap().to_string(), id, "{text}");
    }
    let error = node.images.resolve_name(&node.scope, "nothing:here").await.unwrap_err();
    assert!(matches!(error, Error::NotFound(_)), "{error}");
    let inspection = node.images.inspect(&node.scope, &name).await.unwrap();
    assert_eq!((inspection.documents.len(), inspection.snapshots.len()), (2, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moves_strands_the_old_hash_references_and_history_finds_it() {
    let (node, shelf, name, id, _) = pulled().await;
    let mut made = Made::default();
    let second = made.image("amd64", &layers()[..1]);
    shelf.push(&made, "team/app:v1", &second).await;
    node.pull(&name).await.unwrap();
    assert_eq!(node.names().len(), 5, "the old ones stay for the grace period");
    let old = node.store().image("k8s.io", &id).unwrap();
    assert!(old.labels.contains_key("io.orlop.stranded-since"), "{old:?}");
    node.images.tag(&node.scope, &format!("{name}@{{1}}"), &["example.com/old:1".to_owned()], false).await.unwrap();
    let old = node.store().image("k8s.io", &id).unwrap();
    assert!(!old.labels.contains_key("io.orlop.stranded-since"), "{old:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_others_write_converge() {
    let (node, _shelf, name, id, digest_name) = pulled().await;
    let target = node.store().image("k8s.io", &name).unwrap().target;
    let create =
        |name: &str| ImageChange::Upsert { name: name.to_owned(), target: target.clone(), labels: Labels::new() };
    // As `ctr tag` and `ctr rm` would.
    node.store().write_images(&node.scope, &[create("example.com/b:1"), create("odd name")]).unwrap();
    let done = node.images.reconcile_image("k8s.io", "example.com/b:1").await.unwrap();
    assert_eq!(done.created, [format!("example.com/b@{}", target.digest)]);
    node.store().write_images(&node.scope, &[ImageChange::Delete { name: id.clone() }]).unwrap();
    assert_eq!(node.images.reconcile_image("k8s.io", &id).await.unwrap().created, std::slice::from_ref(&id));
    for gone in [&name, "example.com/b:1", "odd name"] {
        node.store().write_images(&node.scope, &[ImageChange::Delete { name: gone.to_owned() }]).unwrap();
        node.images.reconcile_image("k8s.io", gone).await.unwrap();
    }
    assert!(!node.names().contains(&digest_name));
    assert!(node.names().is_empty(), "{:?}", node.names());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_frees_what_only_the_image_has_and_names_who_keeps_the_rest() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let both = layers();
    let first = made.image("amd64", &both[..2]);
    let second = made.image("amd64", &[both[0].clone(), both[2].clone()]);
    shelf.push(&made, "team/a:1", &first).await;
    shelf.push(&made, "team/b:1", &second).await;
    for name in ["team/a:1", "team/b:1"] {
        node.pull(&shelf.name(name)).await.unwrap();
    }
    let request = RemoveRequest { no_trash: true, ..removal(&shelf.name("team/a:1")) };
    let plan = node.images.plan_remove(&node.scope, &request).await.unwrap();
    assert_eq!((plan.blobs.len(), plan.snapshots.len()), (3, 1), "manifest, config and its own layer: {plan:?}");
    assert_eq!(plan.in_use.len(), 1);
    assert!(plan.in_use[0].reason.starts_with("1 of its blobs stay: "), "{plan:?}");
    assert!(plan.freed_now > 0 && plan.freed_when_trash_empties == 0);
    let before = node.images.disk_usage(&node.scope, false).await.unwrap();
    node.images.remove(&node.scope, &request).await.unwrap();
    let after = node.images.disk_usage(&node.scope, false).await.unwrap();
    let freed = (before.content + before.snapshots) - (after.content + after.snapshots);
    // Blobs are planned by length and freed by blocks; each directory takes one as well, and so does what is recorded of a tree.
    let slack = 4096 * (plan.blobs.len() + 4 * plan.snapshots.len()) as u64;
    assert!(freed.abs_diff(plan.freed_now) <= slack, "planned {}, freed {freed}", plan.freed_now);
    let both: Vec<String> = vec![shelf.name("team/a:1"), shelf.name("team/b:1")];
    let last = RemoveRequest { names: both[1..].to_vec(), ..RemoveRequest::default() };
    assert!(node.images.plan_remove(&node.scope, &last).await.unwrap().in_use.is_empty());
}

/// Regression: a pass of the reconciler wrote what it had decided on records that had changed since. It brought a name back
/// that was deleted meanwhile, or left hash references, and with them content, of an image without a name.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_goes_while_everything_is_reconciled_does_not_come_back() {
    let (node, _shelf, name, ..) = pulled().await;
    let target = node.store().image("k8s.io", &name).unwrap().target;
    let kept = node.store().scoped_lease(&node.scope, 3600).unwrap();
    let resource =
        orlop_metadata::Resource { kind: orlop_metadata::ResourceKind::Content, name: target.digest.to_string() };
    node.store().add_resource("k8s.io", kept.lease.as_deref().unwrap(), &resource).unwrap();
    let images = node.images.clone();
    let passes = tokio::spawn(async move {
        loop {
            images.reconcile("k8s.io").await.unwrap();
        }
    });
    for _ in 0..100 {
        node.store().write_images(&node.scope, &[ImageChange::Delete { name: name.clone() }]).unwrap();
        node.images.reconcile_image("k8s.io", &name).await.unwrap();
        assert_eq!(node.names(), Vec::<String>::new());
        let (name, target, labels) = (name.clone(), target.clone(), Labels::new());
        node.store().write_images(&node.scope, &[ImageChange::Upsert { name: name.clone(), target, labels }]).unwrap();
        node.images.reconcile_image("k8s.io", &name).await.unwrap();
        assert_eq!(node.names().len(), 3);
    }
    passes.abort();
}

/// Regression: a pin wrote whole records as they had been read. It brought a name back that was deleted meanwhile, or moved
/// one back.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_goes_or_moves_while_its_image_is_pinned_does_not_come_back() {
    let (node, shelf, name, id, _) = pulled().await;
    let mut made = Made::default();
    let second = made.image("amd64", &layers()[..1]);
    shelf.push(&made, "team/other:1", &second).await;
    node.pull(&shelf.name("team/other:1")).await.unwrap();
    let first = node.store().image("k8s.io", &name).unwrap().target;
    let (images, scope) = (node.images.clone(), node.scope.clone());
    let pins = tokio::spawn(async move {
        for pinned in [true, false].into_iter().cycle() {
            // A client may read and write in between for so long that no attempt is enough.
            match images.pin(&scope, &id, pinned).await {
                Ok(_) | Err(Error::NotFound(_) | Error::Metadata(orlop_metadata::Error::Moved)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    let write = |change: ImageChange| node.store().write_images(&node.scope, &[change]).unwrap();
    let put = |target: &Descriptor| {
        write(ImageChange::Upsert { name: name.clone(), target: target.clone(), labels: Labels::new() })
    };
    let target = || node.store().image("k8s.io", &name).ok().map(|record| record.target.digest);
    for _ in 0..100 {
        write(ImageChange::Delete { name: name.clone() });
        assert_eq!(target(), None);
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        assert_eq!(target(), None, "nobody makes it");
        put(&second);
        tokio::task::yield_now().await;
        assert_eq!(target().as_ref(), Some(&second.digest), "nobody moves it");
        put(&first);
    }
    assert!(!pins.is_finished());
    pins.abort();
}

/// Whatever clients do to names and hash references: what is done about each change leaves nothing for a pass over everything.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_near_a_change_is_all_that_a_pass_would_find() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let image = made.image("amd64", &layers()[..2]);
    let foreign = made.image("s390x", &layers()[..1]);
    let index = made.index(&[on(&foreign, "s390x"), on(&image, "amd64")]);
    let twin = made.index(&[on(&image, "amd64")]);
    let other = made.image("amd64", &layers()[..1]);
    let targets = [image.clone(), index, twin, other.clone(), foreign];
    for (n, target) in targets.iter().enumerate() {
        shelf.push(&made, &format!("kept/app:{n}"), target).await;
        let request = PullRequest { all_platforms: true, ..PullRequest::default() };
        node.pull_with(&shelf.name(&format!("kept/app:{n}")), request).await.unwrap();
    }
    let mut names: Vec<String> = ["a:1", "a:2", "b:1"].iter().map(|tag| format!("example.com/{tag}")).collect();
    names.push("odd".to_owned());
    names.extend([&image, &other].map(|target| made.image_id(target)));
    names.extend(targets.iter().map(|target| format!("example.com/a@{}", target.digest)));
    names.extend((0..targets.len()).map(|n| shelf.name(&format!("kept/app:{n}"))));
    let mut random = 7_u64;
    let mut draw = |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % below
    };
    for step in 0..150 {
        let name = names[draw(names.len())].clone();
        let change = match draw(3) {
            0 => ImageChange::Delete { name: name.clone() },
            _ => ImageChange::Upsert {
                name: name.clone(),
                target: targets[draw(targets.len())].clone(),
                labels: Labels::new(),
            },
        };
        let there = node.store().image("k8s.io", &name).is_ok();
        if matches!(change, ImageChange::Delete { .. }) && !there {
            continue;
        }
        node.store().write_images(&node.scope, std::slice::from_ref(&change)).unwrap();
        let near = node.images.reconcile_image("k8s.io", &name).await.unwrap();
        let rest = node.images.reconcile("k8s.io").await.unwrap();
        assert_eq!(rest, orlop_image::Reconciled::default(), "step {step}: {change:?}, near: {near:?}");
    }
}
