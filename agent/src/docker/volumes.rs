//! The data of placements: what an image declares as `VOLUME`.
//!
//! Docker gives every container anonymous volumes for that and takes them away with
//! it. A placement outlives its containers, and so does its data: the agent mounts a
//! volume of its own at each such path, named after placement and path and labelled,
//! and Docker makes it with the first container, image content and owner included,
//! as it would an anonymous one. Every later container of the placement gets the same
//! volume; whatever state an agent lost, the labels tell whose it is.
//!
//! Containers of agents before this have anonymous volumes, and labels cannot be added
//! to those. Before such a container is removed, each is entered: an empty volume with
//! our labels names it, and its data is mounted in the successor under its own name.
//!
//! Invariants: a container is removed without its volumes, always, and only once they
//! are ours by label; a volume goes only by a step of the plan, when its placement has
//! ended; one without our labels, and one that a user named, is never touched.
//!
//! Absent on purpose: a record outside Docker, and a deletion by age alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::{
    ContainerInspectResponse, Mount, MountType, MountVolumeOptions, VolumeCreateRequest,
};
use bollard::query_parameters::{ListVolumesOptionsBuilder, RemoveVolumeOptionsBuilder};
use kontena_schema::agent::Placement;
use kontena_schema::ids::{NodeId, PlacementId};
use kontena_schema::name::instance_label;
use tokio::sync::watch;
use tracing::info;

use super::events;
use super::labels::{GRID, NAME, NODE, PLACEMENT};
use super::spec::WAIT_DIR;
use super::status;

/// The path in the container that a volume is for.
const PATH: &str = "io.kontena.volume.path";
/// The anonymous volume that an entry names.
const ENTERS: &str = "io.kontena.volume.enters";
/// Other drivers may hang, and we use no other.
const DRIVER: &str = "local";
/// Docker's names of anonymous volumes are as long as its ids.
const ANONYMOUS_LENGTH: usize = 64;
/// How often volumes are listed even if no event came.
const TICK: Duration = Duration::from_secs(60);

/// Whose data it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The placement; its number means something only with the others: a Master that was
    /// installed anew, or from a backup, gives numbers again.
    pub placement: PlacementId,
    /// The node.
    pub node: NodeId,
    /// The grid's name.
    pub grid: String,
    /// The instance's name, with its stack and service.
    pub instance: String,
}

impl Owner {
    /// That of a placement's data.
    pub fn of(placement: &Placement, node: NodeId, grid: &str) -> Self {
        let stack = placement.stack.as_deref();
        Self {
            placement: placement.id,
            node,
            grid: grid.to_owned(),
            instance: instance_label(stack, &placement.service, placement.instance),
        }
    }
}

/// A volume of a placement, or the entry of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Docker's name.
    pub name: String,
    /// Whose it is.
    pub owner: Owner,
    /// Where it is mounted.
    pub path: String,
    /// The anonymous volume with the data, if this is its entry.
    pub enters: Option<String>,
    mountpoint: String,
    created: String,
}

impl Volume {
    /// Docker's name of the volume with the data.
    pub fn data(&self) -> &str {
        self.enters.as_deref().unwrap_or(&self.name)
    }

    /// Where the host has the data; Docker keeps a volume as `NAME/_data`.
    pub fn data_dir(&self) -> Option<PathBuf> {
        let own = Path::new(&self.mountpoint);
        match &self.enters {
            Some(entered) => {
                let all = own.parent()?.parent()?;
                Some(all.join(entered).join(own.file_name()?))
            }
            None => Some(own.to_owned()),
        }
    }
}

/// Where the volumes of placements are to be seen; none before the first list.
pub type VolumesSlot = watch::Receiver<Option<Arc<Vec<Volume>>>>;

/// Publishes the volumes of placements whenever they change, for ever.
pub async fn watch(docker: Docker, slot: watch::Sender<Option<Arc<Vec<Volume>>>>) {
    let publish = |volumes| {
        slot.send_if_modified(|old| {
            let differs = old.as_deref() != Some(&volumes);
            if differs {
                *old = Some(Arc::new(volumes));
            }
            differs
        });
    };
    events::look_at(&docker, ("volume", TICK), || list(&docker), publish).await;
}

/// The volumes of all placements that this engine ever had.
pub async fn list(docker: &Docker) -> Result<Vec<Volume>, Error> {
    let labels = [PLACEMENT, PATH].map(str::to_owned).to_vec();
    let filters = HashMap::from([("driver", vec![DRIVER.to_owned()]), ("label", labels)]);
    let options = ListVolumesOptionsBuilder::default()
        .filters(&filters)
        .build();
    let listed = docker.list_volumes(Some(options)).await?.volumes;
    let mut volumes: Vec<_> = (listed.into_iter().flatten()).filter_map(read).collect();
    volumes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(volumes)
}

fn read(volume: bollard::models::Volume) -> Option<Volume> {
    Some(Volume {
        owner: owner(&volume.labels)?,
        path: volume.labels.get(PATH)?.clone(),
        enters: volume.labels.get(ENTERS).cloned(),
        created: volume
            .created_at
            .map(|at| at.to_string())
            .unwrap_or_default(),
        mountpoint: volume.mountpoint,
        name: volume.name,
    })
}

fn owner(labels: &HashMap<String, String>) -> Option<Owner> {
    let number = |key| labels.get(key)?.parse().ok();
    Some(Owner {
        placement: PlacementId(number(PLACEMENT)?),
        node: NodeId(number(NODE)?),
        grid: labels.get(GRID)?.clone(),
        instance: labels.get(NAME)?.clone(),
    })
}

fn labels(owner: &Owner, path: &str) -> HashMap<String, String> {
    let labels = [
        (PLACEMENT, owner.placement.to_string()),
        (NODE, owner.node.to_string()),
        (GRID, owner.grid.clone()),
        (NAME, owner.instance.clone()),
        (PATH, path.to_owned()),
    ];
    labels.map(|(key, value)| (key.to_owned(), value)).into()
}

/// What is mounted in a container of `owner` for what its image declares: the volumes
/// that the placement has, and new ones.
pub fn mounts(owner: &Owner, volumes: &[Volume], declared: &[String]) -> Vec<Mount> {
    let paths: BTreeSet<String> = declared.iter().filter_map(|path| clean(path)).collect();
    let mount = |path: String| {
        let known = current(owner, volumes, &path);
        Mount {
            typ: Some(MountType::VOLUME),
            source: Some(known.map_or_else(|| name(owner, &path), |v| v.data().to_owned())),
            volume_options: known.is_none().then(|| MountVolumeOptions {
                labels: Some(labels(owner, &path)),
                ..MountVolumeOptions::default()
            }),
            target: Some(path),
            ..Mount::default()
        }
    };
    paths.into_iter().map(mount).collect()
}

/// The placement's volume for a path. Only after an agent of the version before had the
/// host for a while is there more than one; then what was entered last is newer.
fn current<'a>(owner: &Owner, volumes: &'a [Volume], path: &str) -> Option<&'a Volume> {
    let mine = volumes
        .iter()
        .filter(|v| v.owner == *owner && v.path == path);
    mine.max_by_key(|volume| (volume.enters.is_some(), &volume.created))
}

/// The same for the same placement and path, so that whoever creates twice creates one.
fn name(owner: &Owner, path: &str) -> String {
    let Owner {
        placement,
        node,
        grid,
        instance,
    } = owner;
    // Paths begin with a slash, and names of instances have none.
    let hash = fnv1a(&format!("{instance}{path}"));
    format!("kontena-{grid}-{node}-{placement}-{hash:016x}")
}

/// FNV-1a with 64 bits; std's hashes may change with the compiler.
fn fnv1a(text: &str) -> u64 {
    let step = |hash: u64, octet: u8| (hash ^ u64::from(octet)).wrapping_mul(0x100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

/// As Docker understands a path of `VOLUME`; none for one that is not ours to mount.
fn clean(path: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in path.strip_prefix('/')?.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let path = format!("/{}", parts.join("/"));
    (path != "/" && path != WAIT_DIR).then_some(path)
}

/// Makes the anonymous volumes of a container ours, so that they outlive it.
pub async fn keep(docker: &Docker, container: &str) -> Result<(), Error> {
    let inspected = match docker.inspect_container(container, None).await {
        Err(err) if status(&err) == Some(404) => return Ok(()),
        inspected => inspected?,
    };
    let labels_of =
        |inspected: &ContainerInspectResponse| owner(inspected.config.as_ref()?.labels.as_ref()?);
    let Some(owner) = labels_of(&inspected) else {
        return Ok(());
    };
    for (path, data) in anonymous(&inspected) {
        info!(container, path, volume = data, "kept for the placement");
        let mut labels = labels(&owner, &path);
        labels.insert(ENTERS.to_owned(), data.clone());
        let entry = VolumeCreateRequest {
            name: Some(format!("{}-{}", name(&owner, &path), &data[..12])),
            driver: Some(DRIVER.to_owned()),
            labels: Some(labels),
            ..VolumeCreateRequest::default()
        };
        docker.create_volume(entry).await?;
    }
    Ok(())
}

/// The volumes that Docker made for a container because its image declares them, by path.
fn anonymous(inspected: &ContainerInspectResponse) -> BTreeMap<String, String> {
    let host = inspected.host_config.as_ref();
    let binds = host
        .and_then(|host| host.binds.as_ref())
        .into_iter()
        .flatten();
    let mounts = host
        .and_then(|host| host.mounts.as_ref())
        .into_iter()
        .flatten();
    let asked_for: BTreeSet<&str> = binds
        .filter_map(|bind| bind.split(':').nth(1))
        .chain(mounts.filter_map(|mount| mount.target.as_deref()))
        .collect();
    let is_id = |name: &str| {
        name.len() == ANONYMOUS_LENGTH && name.bytes().all(|octet| octet.is_ascii_hexdigit())
    };
    let there = inspected.mounts.iter().flatten().filter_map(|mount| {
        let (path, name) = (mount.destination.clone()?, mount.name.clone()?);
        let made = mount.typ.as_deref() == Some("volume")
            && mount.driver.as_deref() == Some(DRIVER)
            && !asked_for.contains(path.as_str())
            && is_id(&name);
        made.then_some((path, name))
    });
    there.collect()
}

/// Removes a volume of a placement that has ended; the data first, so that what is left
/// after an error is found again.
pub async fn remove(docker: &Docker, volume: &Volume) -> Result<(), Error> {
    for name in [volume.data(), &volume.name] {
        let options = RemoveVolumeOptionsBuilder::default().build();
        match docker.remove_volume(name, Some(options)).await {
            Err(err) if status(&err) == Some(404) => {}
            removed => removed?,
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const DATA: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    pub(crate) fn volume(placement: i64, path: &str, enters: Option<&str>) -> Volume {
        let owner = Owner {
            placement: PlacementId(placement),
            node: NodeId(1),
            grid: "demo".to_owned(),
            instance: "testapp-web-1".to_owned(),
        };
        Volume {
            name: name(&owner, path) + enters.map_or("", |_| "-entry"),
            owner,
            path: path.to_owned(),
            enters: enters.map(str::to_owned),
            mountpoint: String::new(),
            created: String::new(),
        }
    }

    /// Path and name of each.
    fn targets(mounts: &[Mount]) -> Vec<[&str; 2]> {
        let mut all = Vec::new();
        for mount in mounts {
            all.push([&mount.target, &mount.source].map(|text| text.as_deref().unwrap()));
        }
        all
    }

    #[test]
    fn the_same_paths_get_the_same_volumes_and_new_ones_get_new_ones() {
        let known = volume(11, "/data", None);
        let of_another = volume(12, "/log", None);
        let volumes = [known.clone(), of_another.clone()];
        let declared = ["/data/", "/log", "/x/../data"].map(str::to_owned);
        let mounts = mounts(&known.owner, &volumes, &declared);
        let [data, log] = &targets(&mounts)[..] else {
            panic!("{mounts:?}");
        };
        assert_eq!(data, &["/data", &known.name]);
        assert!(log[0] == "/log" && log[1] != of_another.name);
        // A volume that Docker is to make carries whose it is.
        assert!(mounts[0].volume_options.is_none());
        let labels = mounts[1].volume_options.clone().unwrap().labels.unwrap();
        assert_eq!(owner(&labels), Some(known.owner));
        assert_eq!(labels[PATH], "/log");
    }

    #[test]
    fn what_another_instance_left_under_the_same_number_is_not_mounted() {
        let left = volume(11, "/data", None);
        let mut owner = left.owner.clone();
        owner.instance = "other-db-1".to_owned();
        let mounts = mounts(&owner, std::slice::from_ref(&left), &["/data".to_owned()]);
        assert_ne!(targets(&mounts)[0][1], left.name);
    }

    #[test]
    fn an_anonymous_volume_that_was_entered_is_mounted_under_its_own_name() {
        let entry = volume(11, "/data", Some(DATA));
        let volumes = [volume(11, "/data", None), entry.clone()];
        let mounts = mounts(&entry.owner, &volumes, &["/data".to_owned()]);
        assert_eq!(targets(&mounts), [["/data", DATA]]);
    }

    #[test]
    fn the_data_of_an_entry_lies_beside_it() {
        let mut volume = volume(11, "/data", None);
        volume.mountpoint = "/var/lib/docker/volumes/x/_data".to_owned();
        let dir = |volume: &Volume| volume.data_dir().unwrap();
        assert_eq!(dir(&volume), Path::new("/var/lib/docker/volumes/x/_data"));
        volume.enters = Some("y".to_owned());
        assert_eq!(dir(&volume), Path::new("/var/lib/docker/volumes/y/_data"));
    }

    #[test]
    fn paths_are_understood_as_docker_does() {
        for (path, cleaned) in [
            ("/data/", Some("/data")),
            ("//srv/./x/../y", Some("/srv/y")),
            ("/..", None),
            ("/", None),
            ("/w/", None),
            ("data", None),
        ] {
            assert_eq!(clean(path).as_deref(), cleaned);
        }
    }

    #[test]
    fn only_what_nobody_asked_for_is_anonymous() {
        let container = format!(
            r#"{{"HostConfig": {{"Binds": ["/bin:/w:ro", "{DATA}:/bound"],
                    "Mounts": [{{"Type": "volume", "Source": "{DATA}", "Target": "/mounted"}}]}},
                "Mounts": [
                    {{"Type": "volume", "Name": "{DATA}", "Destination": "/data", "Driver": "local"}},
                    {{"Type": "volume", "Name": "{DATA}", "Destination": "/bound", "Driver": "local"}},
                    {{"Type": "volume", "Name": "{DATA}", "Destination": "/mounted", "Driver": "local"}},
                    {{"Type": "volume", "Name": "{DATA}", "Destination": "/nfs", "Driver": "nfs"}},
                    {{"Type": "volume", "Name": "mine", "Destination": "/named", "Driver": "local"}},
                    {{"Type": "bind", "Source": "/bin", "Destination": "/w"}}]}}"#
        );
        let inspected = serde_json::from_str(&container).unwrap();
        let found = anonymous(&inspected);
        assert_eq!(found, [("/data".to_owned(), DATA.to_owned())].into());
    }

    #[test]
    fn names_are_dockers_and_differ_by_placement_node_grid_instance_and_path() {
        let base = volume(11, "/data", None).owner;
        let mut names = BTreeSet::from([name(&base, "/data"), name(&base, "/dat")]);
        let mut other = base.clone();
        other.placement = PlacementId(12);
        names.insert(name(&other, "/data"));
        other = base.clone();
        other.node = NodeId(2);
        names.insert(name(&other, "/data"));
        other = base.clone();
        other.grid = "other".to_owned();
        names.insert(name(&other, "/data"));
        other = base;
        other.instance = "testapp-db-1".to_owned();
        names.insert(name(&other, "/data"));
        assert_eq!(names.len(), 6);
        let plain = |c: u8| c.is_ascii_alphanumeric() || c == b'-';
        assert!(names.iter().all(|name| name.bytes().all(plain)));
    }
}
