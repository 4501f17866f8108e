//! A disk that is full, which a small tmpfs in a mount namespace of the test's own is.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;

use kontena_schema::agent::{Changes, Own, Shared};
use kontena_schema::ids::Revision;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::time::timeout;

use kontena_task::{Task, spawn};

use super::*;
use crate::directory::tests::{directory, welcome};
use crate::testing::TempDir;

const BOUND: Duration = Duration::from_secs(60);

/// Runs a story on a filesystem of 256 KiB.
fn on_a_small_disk<F: Future<Output = ()>>(story: impl FnOnce(Store, Disk) -> F + Send + 'static) {
    let test = thread::spawn(move || {
        let dir = TempDir::new();
        unshare(CloneFlags::CLONE_NEWNS).expect("root is needed");
        let none = None::<&str>;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, private, none).unwrap();
        let size = Some("size=256k");
        mount(none, dir.path(), Some("tmpfs"), MsFlags::empty(), size).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let store = Store::open(dir.path()).unwrap();
        runtime.block_on(story(store, Disk(dir.path().join("filler"))));
    });
    assert!(test.join().is_ok(), "see above");
}

/// The disk, by the file that fills it.
struct Disk(PathBuf);

impl Disk {
    fn fill(&self) {
        let mut file = fs::File::create(&self.0).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    fn clear(&self) {
        fs::remove_file(&self.0).unwrap();
    }

    fn dir(&self) -> &Path {
        self.0.parent().unwrap()
    }
}

fn next(known: &Directory) -> Directory {
    let mut next = known.clone();
    let from = next.revision();
    next.merge(Changes {
        timeline: known.reached.as_ref().unwrap().timeline.clone(),
        from,
        to: Revision(from.0 + 1),
        shared: Shared::default(),
        own: Own::default(),
    })
    .unwrap();
    next
}

/// What the Master sends, on its way to those who act on it.
struct Keeping {
    newest: Arc<Directory>,
    received: watch::Sender<Arc<Directory>>,
    acted_on: watch::Receiver<Arc<Directory>>,
    _task: Task,
}

impl Keeping {
    /// The first directory is on disk.
    fn start(store: &Store) -> Self {
        let newest = Arc::new(directory());
        store.save_directory(&newest).unwrap();
        let (received_in, received) = watch::channel(newest.clone());
        let (slot, acted_on) = watch::channel(newest.clone());
        let writer = Writer::new(store.clone(), newest.clone());
        Self {
            newest,
            received: received_in,
            acted_on,
            _task: spawn("directory", run(writer, received, slot)),
        }
    }

    /// The Master sends another one, and it is acted on whatever the disk does.
    async fn is_acted_on(&mut self) {
        self.newest = Arc::new(next(&self.newest));
        self.received.send_replace(self.newest.clone());
        let newest = self.newest.clone();
        let arrived = timeout(BOUND, self.acted_on.wait_for(|known| **known == *newest));
        assert!(arrived.await.is_ok(), "the disk stops nobody");
    }
}

#[test]
fn on_a_full_disk_the_agent_goes_on_from_memory_and_keeps_what_it_had() {
    on_a_small_disk(|store, disk| async move {
        let mut keeping = Keeping::start(&store);
        let first = keeping.newest.clone();
        disk.fill();
        keeping.is_acted_on().await;
        let second = keeping.newest.clone();
        let kept = store.directory().expect("the good one is still there");
        assert!(kept.outdated, "a successor must not act on it");
        assert_eq!(kept.revision(), first.revision());
        assert_eq!(kept.placements, first.placements);
        let partial = |entry: fs::DirEntry| entry.path().extension().is_some_and(|e| e == "new");
        let mut left = fs::read_dir(disk.dir()).unwrap().filter_map(Result::ok);
        assert!(!left.any(partial), "a part takes room");

        // Nothing new comes; it is written all the same once there is room.
        disk.clear();
        let written = async {
            while store.directory().is_none_or(|known| known.outdated) {
                sleep(Duration::from_millis(50)).await;
            }
        };
        assert!(timeout(BOUND, written).await.is_ok());
        assert_eq!(store.directory().unwrap().revision(), second.revision());
    });
}

#[test]
fn what_is_outdated_is_so_until_the_master_has_spoken() {
    on_a_small_disk(|store, disk| async move {
        let first = directory();
        store.save_directory(&first).unwrap();
        disk.fill();
        // Again and again, as changes come.
        for _ in 0..3 {
            store.save_directory(&next(&first)).unwrap_err();
        }
        let mut outdated = store.directory().unwrap();
        assert!(outdated.outdated);
        assert!(!next(&outdated).outdated);
        // Who this host is comes first, and says nothing of all else.
        disk.clear();
        outdated.welcome(&welcome(1));
        store.save_directory(&outdated).unwrap();
        assert!(store.directory().unwrap().outdated);
        store.forget().unwrap();
        assert_eq!(store.directory(), None);
    });
}

#[test]
fn a_disk_that_hangs_delays_nobody_for_long() {
    on_a_small_disk(|store, disk| async move {
        let mut keeping = Keeping::start(&store);
        let first = keeping.newest.clone();
        // Whoever opens it to write waits until somebody reads.
        let beside = disk.dir().join("directory.new");
        mkfifo(&beside, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        for _ in 0..3 {
            keeping.is_acted_on().await;
        }
        let newest = keeping.newest.clone();
        assert_eq!(store.directory().unwrap().revision(), first.revision());

        // What was begun fails, and the newest is written in its place.
        drop(fs::File::open(&beside).unwrap());
        let written = async {
            let is = |known: &Directory| known.revision() == newest.revision();
            while !store.directory().is_some_and(|known| is(&known)) {
                sleep(Duration::from_millis(50)).await;
            }
        };
        assert!(timeout(BOUND, written).await.is_ok());
        assert!(!store.directory().unwrap().outdated);
    });
}
