//! How much data placements keep.
//!
//! Docker can say (`/system/df`), but before version 23 only together with the size of
//! every container and image, and it walks them all at full speed. So the agent looks
//! itself, through the root of the host's first process, seldom and one volume after
//! the other: what is new soon, everything once in a while.
//!
//! Invariants: looking takes a small share of the time, however much there is; what
//! cannot be looked at has no size, never a wrong one; no other file system is entered.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kontena_schema::agent::DataMeasure;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout_at};
use tracing::debug;

use super::volumes::{Volume, VolumesSlot};

/// The host, as the agent's container sees it.
const HOST_ROOT: &str = "/proc/1/root";
/// How often everything is measured at most.
const EVERY: Duration = Duration::from_secs(600);
/// A measurement is followed by a pause of so many times its length.
const PAUSE_TIMES: u32 = 50;
/// Volumes with more files have no size: to count them would take minutes.
const FILES_MAX: u64 = 1_000_000;
/// What `st_blocks` counts in, whatever the file system (stat(2)).
const BLOCK_BYTES: u64 = 512;

/// What placements keep.
#[derive(Clone, Debug, Default)]
pub struct Data {
    volumes: Arc<Vec<Volume>>,
    /// What was measured, by the volume's name.
    sizes: BTreeMap<String, Size>,
}

#[derive(Clone, Copy, Debug)]
struct Size {
    bytes: Option<u64>,
    at: Instant,
}

/// Where it is to be seen; none before the first list of volumes.
pub type DataSlot = watch::Receiver<Option<Arc<Data>>>;

impl Data {
    /// What each placement keeps, as it was measured before `now`.
    pub fn measures(&self, now: Instant) -> Vec<DataMeasure> {
        let mut measures = BTreeMap::new();
        for volume in self.volumes.iter() {
            let size = self.sizes.get(&volume.name);
            let bytes = size.and_then(|size| size.bytes);
            let age_s = size.map(|size| now.saturating_duration_since(size.at).as_secs());
            let placement = volume.owner.placement;
            let measure = measures.entry(placement).or_insert(DataMeasure {
                placement,
                volumes: 0,
                bytes: Some(0),
                age_s: None,
            });
            measure.volumes += 1;
            measure.bytes = measure
                .bytes
                .zip(bytes)
                .map(|(all, one)| all.saturating_add(one));
            measure.age_s = measure.age_s.max(age_s);
        }
        measures.into_values().collect()
    }
}

/// Measures, for ever; without an engine there is nothing to measure.
pub async fn watch(volumes: VolumesSlot, slot: watch::Sender<Option<Arc<Data>>>) {
    measure_all(volumes, slot).await;
    std::future::pending().await
}

/// Measures as long as the volumes are listed.
async fn measure_all(mut volumes: VolumesSlot, slot: watch::Sender<Option<Arc<Data>>>) {
    let mut sizes = BTreeMap::new();
    let mut all_due = Instant::now();
    let mut listens = true;
    while listens {
        let listed = volumes.borrow_and_update().clone();
        let Some(listed) = listed else {
            listens = volumes.changed().await.is_ok();
            continue;
        };
        sizes.retain(|name, _| listed.iter().any(|volume| volume.name == *name));
        publish(&slot, &listed, &sizes);
        let began = Instant::now();
        let all = began >= all_due;
        for volume in listed.iter() {
            if all || !sizes.contains_key(&volume.name) {
                sizes.insert(volume.name.clone(), measure(volume).await);
            }
        }
        publish(&slot, &listed, &sizes);
        let pause = began.elapsed() * PAUSE_TIMES;
        if all {
            all_due = Instant::now() + pause.max(EVERY);
        }
        // What is new waits for the pause, too.
        sleep(pause).await;
        let changed = timeout_at(all_due.into(), volumes.changed()).await;
        listens = !matches!(changed, Ok(Err(_)));
    }
}

fn publish(
    slot: &watch::Sender<Option<Arc<Data>>>,
    volumes: &Arc<Vec<Volume>>,
    sizes: &BTreeMap<String, Size>,
) {
    slot.send_replace(Some(Arc::new(Data {
        volumes: volumes.clone(),
        sizes: sizes.clone(),
    })));
}

async fn measure(volume: &Volume) -> Size {
    let at = Instant::now();
    let Some(dir) = volume.data_dir() else {
        return Size { bytes: None, at };
    };
    let dir = Path::new(HOST_ROOT).join(dir.strip_prefix("/").unwrap_or(&dir));
    let bytes = spawn_blocking(move || disk_usage(&dir)).await;
    let bytes = bytes.unwrap_or_else(|died| Err(io::Error::other(died)));
    if let Err(err) = &bytes {
        debug!(volume = volume.name, %err, "not measured");
    }
    Size {
        bytes: bytes.ok(),
        at,
    }
}

/// What the files below a directory take on its disk, as `du` counts.
fn disk_usage(dir: &Path) -> io::Result<u64> {
    let top = fs::symlink_metadata(dir)?;
    let mut count = Count {
        device: top.dev(),
        bytes: 0,
        files: 0,
        linked: HashSet::new(),
    };
    count.add(&top)?;
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        match there(fs::read_dir(&dir))? {
            Some(entries) => count.entries(entries, &mut dirs)?,
            None => continue,
        }
    }
    Ok(count.bytes)
}

struct Count {
    device: u64,
    bytes: u64,
    files: u64,
    /// Files with more than one name.
    linked: HashSet<u64>,
}

impl Count {
    fn entries(&mut self, entries: fs::ReadDir, dirs: &mut Vec<PathBuf>) -> io::Result<()> {
        for entry in entries {
            let entry = entry?;
            let Some(found) = there(entry.metadata())? else {
                continue;
            };
            // Below a mount the files are not the volume's.
            if found.dev() != self.device {
                continue;
            }
            self.add(&found)?;
            if found.is_dir() {
                dirs.push(entry.path());
            }
        }
        Ok(())
    }

    fn add(&mut self, found: &Metadata) -> io::Result<()> {
        self.files += 1;
        if self.files > FILES_MAX {
            return Err(io::Error::other("too many files to count"));
        }
        if found.is_dir() || found.nlink() < 2 || self.linked.insert(found.ino()) {
            self.bytes += found.blocks() * BLOCK_BYTES;
        }
        Ok(())
    }
}

/// What vanishes while it is looked at is none.
fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(err) if err.kind() == ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::docker::volumes::tests::volume;
    use crate::testing::TempDir;

    #[test]
    fn what_takes_room_on_the_disk_is_counted_once() {
        let dir = TempDir::new();
        let empty = disk_usage(dir.path()).unwrap();
        let below = dir.path().join("below");
        fs::create_dir(&below).unwrap();
        fs::write(below.join("file"), vec![1; 100_000]).unwrap();
        let once = disk_usage(dir.path()).unwrap();
        assert!(once >= empty + 100_000, "{once}");
        fs::hard_link(below.join("file"), dir.path().join("same")).unwrap();
        symlink("/", below.join("elsewhere")).unwrap();
        let linked = disk_usage(dir.path()).unwrap();
        assert!(linked < once + 100_000, "{linked}");
        assert!(disk_usage(&dir.path().join("nothing")).is_err());
    }

    #[test]
    fn a_placement_has_a_size_when_all_of_its_volumes_have() {
        let volumes = [(11, "/a"), (11, "/b"), (12, "/a")];
        let volumes = volumes.map(|(placement, path)| volume(placement, path, None));
        let now = Instant::now();
        let size = |bytes| Size { bytes, at: now };
        let names = volumes.each_ref().map(|volume| volume.name.clone());
        let sizes = names.into_iter().zip([Some(1), Some(2), None].map(size));
        let data = Data {
            volumes: Arc::new(volumes.into()),
            sizes: sizes.collect(),
        };
        let measures = data.measures(now + Duration::from_secs(7));
        let told = measures
            .iter()
            .map(|m| (m.placement.0, m.volumes, m.bytes, m.age_s));
        let told: Vec<_> = told.collect();
        assert_eq!(told, [(11, 2, Some(3), Some(7)), (12, 1, None, Some(7))]);
    }
}
