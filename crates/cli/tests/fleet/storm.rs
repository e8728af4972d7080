//! Pushers race the collector of three gateways while PostgreSQL, the bucket and the gateways are killed, busy or mute.
//!
//! Leases last a third of a second and objects one second more, so that the collector is always at the heels of the pushers, which share
//! layers; every fourth push deletes another image. What was acknowledged is written into a ledger and pulled again and again.
//! In the end everything in the ledger is there, byte for byte, and after a collection and a sweep nothing else is.
//!
//! What each actor does follows from a seed (`ORLOP_TEST_SEED`), which is printed; in which order processes come to it does
//! not. `ORLOP_TEST_STORM_SECONDS` is how long it goes on: a minute in the short tier.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use orlop_oci::Digest;
use orlop_testkit::tier::amount;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use reqwest::Client as Http;
use rustix::process::Signal;

use crate::client::{Client, Image, Trouble};
use crate::world::{Gateway, World};

const GATEWAYS: usize = 3;
const PUSHERS: u64 = 4;
const PULLERS: u64 = 2;
const OPTIONS: &[&str] = &[
    "--lease",
    "300ms",
    "--delete-after",
    "1s",
    "--collect-every",
    "500ms",
    "--bucket-patience",
    "2s",
    "--database-connections",
    "8",
];

/// Images that are left at once: so few that layers come and go.
const FEW: usize = 5;

/// How long everything may take to be well again when the storm is over.
const RECOVERY: Duration = Duration::from_secs(60);

/// What was acknowledged, where the gateways are, and what happened.
struct Sea {
    ledger: Mutex<BTreeMap<Digest, (String, Arc<Image>)>>,
    hosts: Mutex<Vec<String>>,
    http: Http,
    over: AtomicBool,
    pushed: AtomicU64,
    refused: AtomicU64,
    away: AtomicU64,
    deleted: AtomicU64,
    pulled: AtomicU64,
}

impl Sea {
    fn client(&self, draw: &mut StdRng) -> Client {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        Client::new(&self.http, &hosts[draw.random_range(0..hosts.len())])
    }

    fn ledger(&self) -> std::sync::MutexGuard<'_, BTreeMap<Digest, (String, Arc<Image>)>> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Any image of the ledger; with `take` it is in there no more.
    fn any(&self, draw: &mut StdRng, take: bool) -> Option<(String, Arc<Image>)> {
        let mut ledger = self.ledger();
        let at = draw.random_range(0..ledger.len().max(1));
        let digest = ledger.keys().nth(at)?.clone();
        if take { ledger.remove(&digest) } else { ledger.get(&digest).cloned() }
    }
}

/// Layers that all pushers share; one has several parts.
fn layers() -> Vec<Vec<u8>> {
    let sizes = [100, 5_000, 40_000, 40_000, 300_000, 2 << 20, 9 << 20];
    sizes.iter().enumerate().map(|(seed, size)| orlop_testkit::image::noise(seed as u64, *size)).collect()
}

async fn push(sea: Arc<Sea>, number: u64, seed: u64) {
    let mut draw = StdRng::seed_from_u64(seed * 1000 + number);
    let layers = layers();
    for count in 0.. {
        if sea.is_over() {
            return;
        }
        let mut chosen: Vec<Vec<u8>> = (0..3).map(|_| layers[draw.random_range(0..layers.len())].clone()).collect();
        chosen.dedup();
        let image = Arc::new(Image::new(&format!("{number}-{count}"), chosen));
        let repository = format!("repository{}", draw.random_range(0..2));
        if push_one(&sea, &mut draw, &repository, &image, &format!("t{number}")).await {
            sea.pushed.fetch_add(1, Ordering::SeqCst);
            sea.ledger().insert(image.digest(), (repository, image));
        }
        if draw.random_bool(0.25) || sea.ledger().len() > FEW {
            // Out of the ledger first: from now on nobody expects it.
            let Some((repository, image)) = sea.any(&mut draw, true) else { continue };
            let _ = sea.client(&mut draw).delete(&repository, &image).await;
            sea.deleted.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Whether it was acknowledged before the storm was over.
async fn push_one(sea: &Sea, draw: &mut StdRng, repository: &str, image: &Image, tag: &str) -> bool {
    while !sea.is_over() {
        let chunked = draw.random_bool(0.5);
        let client = sea.client(draw);
        let blobs = client.push_blobs(repository, image, chunked).await;
        // Often longer than a lease: the collector may come between.
        tokio::time::sleep(Duration::from_millis(draw.random_range(0..600))).await;
        let pushed = match blobs {
            Ok(()) => sea.client(draw).push_manifest(repository, image, tag).await,
            Err(trouble) => Err(trouble),
        };
        match pushed {
            Ok(()) => return true,
            Err(Trouble::Away(_)) => {
                sea.away.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(draw.random_range(20..200))).await;
            }
            // The collector was there, or a gateway died with the upload: begin again.
            Err(Trouble::Missing(_)) => drop(sea.refused.fetch_add(1, Ordering::SeqCst)),
            Err(Trouble::Wrong(why)) => panic!("{why}"),
        }
    }
    false
}

async fn pull(sea: Arc<Sea>, number: u64, seed: u64) {
    let mut draw = StdRng::seed_from_u64(seed * 1000 + 500 + number);
    while !sea.is_over() {
        let Some((repository, image)) = sea.any(&mut draw, false) else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        match sea.client(&mut draw).pull(&repository, &image).await {
            Ok(()) => drop(sea.pulled.fetch_add(1, Ordering::SeqCst)),
            Err(Trouble::Away(_)) => tokio::time::sleep(Duration::from_millis(100)).await,
            Err(Trouble::Missing(why)) => assert!(!sea.ledger().contains_key(&image.digest()), "lost: {why}"),
            Err(Trouble::Wrong(why)) => panic!("{why}"),
        }
    }
}

/// Does harm until the time is up; leaves everything running.
fn harm(mut world: World, sea: &Sea, seed: u64, end: Instant) -> (World, Vec<Gateway>) {
    let mut draw = StdRng::seed_from_u64(seed * 1000 + 999);
    let mut gateways: Vec<Gateway> = (0..GATEWAYS).map(|i| world.gateway(&format!("0-{i}"), OPTIONS)).collect();
    let publish = |gateways: &[Gateway]| {
        let hosts = gateways.iter().map(|gateway| gateway.host.clone()).collect();
        *sea.hosts.lock().unwrap_or_else(PoisonError::into_inner) = hosts;
    };
    publish(&gateways);
    let mut done = BTreeMap::<&str, u64>::new();
    for round in 1.. {
        std::thread::sleep(Duration::from_millis(draw.random_range(200..1500)));
        if Instant::now() >= end {
            break;
        }
        let harm = ["kill gateway", "end gateway", "kill database", "busy bucket", "mute bucket", "sweep"]
            [draw.random_range(0..6)];
        let moment = Duration::from_millis(draw.random_range(100..1000));
        *done.entry(harm).or_default() += 1;
        match harm {
            "kill gateway" | "end gateway" => {
                let at = draw.random_range(0..GATEWAYS);
                if harm == "kill gateway" {
                    gateways[at].daemon.kill();
                } else {
                    gateways[at].daemon.signal(Signal::TERM);
                    gateways[at].daemon.wait();
                }
                gateways[at] = world.gateway(&format!("{round}-{at}"), OPTIONS);
                publish(&gateways);
            }
            "kill database" => {
                world.postgres.kill();
                std::thread::sleep(moment);
                world.postgres.restart();
            }
            "busy bucket" => {
                world.busy.set_busy(true);
                std::thread::sleep(moment);
                world.busy.set_busy(false);
            }
            "mute bucket" => {
                world.busy.lose_one_of(5);
                std::thread::sleep(moment);
                world.busy.lose_one_of(0);
            }
            // In the midst of everything, and of objects of any age.
            _ => drop(world.collect(&[OPTIONS, &["--orphan-age", "0s"]].concat())),
        }
    }
    eprintln!("harm: {done:?}; requests to the bucket refused and unanswered: {:?}", world.busy.counts());
    (world, gateways)
}

async fn check(sea: &Sea, host: &str) {
    let end = Instant::now() + RECOVERY;
    let ledger: Vec<_> = sea.ledger().values().cloned().collect();
    let client = Client::new(&sea.http, host);
    for (repository, image) in ledger {
        loop {
            match client.pull(&repository, &image).await {
                Ok(()) => break,
                Err(Trouble::Away(why)) => assert!(Instant::now() < end, "not well again: {why}"),
                Err(trouble) => panic!("an acknowledged image is lost: {trouble:?}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// After a collection of everything that nobody holds any more and a sweep: what the ledger needs is there, once, and no more.
fn leaves_nothing(world: &World, sea: &Sea) {
    world.sql("UPDATE blobs SET held_until = now() - interval '1 second', delete_at = now()");
    world.sql("UPDATE ingests SET updated_at = now() - interval '2 days'");
    let said = world.collect(&["--delete-after", "0s", "--orphan-age", "0s"]).ok().stdout;
    eprintln!("{}", said.trim_end());
    let mut needed = BTreeSet::new();
    for (_, image) in sea.ledger().values() {
        needed.extend(image.layers.iter().chain([&image.manifest]).map(|bytes| Digest::of(bytes).hex().to_owned()));
    }
    // Deletions whose answers were lost may have left manifests that nobody expects.
    let listed = world.sql("SELECT digest FROM manifests UNION SELECT digest FROM manifest_blobs");
    needed.extend(listed.lines().filter_map(|digest| digest.split_once(':')).map(|(_, hex)| hex.to_owned()));
    let keys = world.keys("blobs");
    let found: Vec<_> = keys.iter().filter_map(|key| key.split('/').nth(3)).map(str::to_owned).collect();
    assert_eq!(found.len(), found.iter().collect::<BTreeSet<_>>().len(), "one generation of each");
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), needed);
    assert_eq!(world.keys("uploads"), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn pushers_race_the_collector_and_nothing_is_lost_or_left() {
    let Some(world) = World::new() else { return };
    let seed: u64 = amount("ORLOP_TEST_SEED", 1);
    let seconds: u64 = amount("ORLOP_TEST_STORM_SECONDS", 60);
    eprintln!("ORLOP_TEST_SEED={seed} ORLOP_TEST_STORM_SECONDS={seconds}");
    let sea = Arc::new(Sea {
        ledger: Mutex::default(),
        hosts: Mutex::default(),
        http: Http::builder().timeout(Duration::from_secs(30)).build().unwrap(),
        over: AtomicBool::new(false),
        pushed: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        away: AtomicU64::new(0),
        deleted: AtomicU64::new(0),
        pulled: AtomicU64::new(0),
    });
    let end = Instant::now() + Duration::from_secs(seconds);
    let harming = {
        let sea = sea.clone();
        tokio::task::spawn_blocking(move || harm(world, &sea, seed, end))
    };
    while sea.hosts.lock().unwrap().is_empty() {
        assert!(!harming.is_finished(), "gateways do not come up");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let pushers = (0..PUSHERS).map(|number| tokio::spawn(push(sea.clone(), number, seed)));
    let pullers = (0..PULLERS).map(|number| tokio::spawn(pull(sea.clone(), number, seed)));
    let actors: Vec<_> = pushers.chain(pullers).collect();
    let (world, gateways) = harming.await.unwrap();
    sea.over.store(true, Ordering::SeqCst);
    for actor in actors {
        actor.await.unwrap();
    }
    let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    let (pushed, pulled) = (count(&sea.pushed), count(&sea.pulled));
    eprintln!(
        "{pushed} images pushed, {} times begun again, {} times away, {} deleted, {pulled} pulled, {} left",
        count(&sea.refused),
        count(&sea.away),
        count(&sea.deleted),
        sea.ledger().len()
    );
    assert!(pushed > seconds / 10 && pulled > seconds / 10, "hardly anything was done");
    assert!(seconds < 30 || count(&sea.refused) > 0, "the collector was never between");
    check(&sea, &gateways[0].host).await;
    drop(gateways);
    let host_sea = sea.clone();
    let (_world, gateway) = tokio::task::spawn_blocking(move || {
        leaves_nothing(&world, &host_sea);
        let gateway = world.gateway("last", &[]);
        (world, gateway)
    })
    .await
    .unwrap();
    check(&sea, &gateway.host).await;
}
