//! The host's files, read from within the agent's container.
//!
//! The host's root is reached through its first process. An absolute link there, as
//! `/etc/resolv.conf` may be where systemd-resolved manages it, would lead into the
//! agent's own root if the kernel followed it; so links are followed here. (`openat2` with
//! `RESOLVE_IN_ROOT` does that too, but only since Linux 5.6.)

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

/// As many as the kernel follows.
const LINKS_MAX: usize = 40;
/// Most files have a few lines; a `hosts` that blocks sites may have thousands.
const BYTES_MAX: u64 = 4 << 20;

/// The text of a file below a root; links stay below it as well.
pub fn read(root: &Path, path: &str) -> io::Result<String> {
    let path = follow(root, Path::new(path))?;
    // Reading a pipe could block for ever.
    if !fs::metadata(&path)?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    let mut text = Vec::new();
    File::open(path)?.take(BYTES_MAX).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn follow(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut ahead = parts(path);
    // The path so far, below the root.
    let mut at = PathBuf::new();
    let mut links = 0;
    while let Some(part) = ahead.pop() {
        if part == ".." {
            at.pop();
            continue;
        }
        match fs::read_link(root.join(&at).join(&part)) {
            Ok(target) => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(io::Error::other("too many symbolic links"));
                }
                if target.is_absolute() {
                    at.clear();
                }
                ahead.extend(parts(&target));
            }
            // It exists and is not a link.
            Err(err) if err.kind() == io::ErrorKind::InvalidInput => at.push(part),
            Err(err) => return Err(err),
        }
    }
    Ok(root.join(at))
}

/// The parts of a path in reverse order.
fn parts(path: &Path) -> Vec<OsString> {
    let part = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    };
    path.components().rev().filter_map(part).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::testing::TempDir;

    /// A root with systemd-resolved's file in it.
    fn root() -> TempDir {
        let root = TempDir::new();
        fs::create_dir_all(root.path().join("run/systemd/resolve")).unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        let stub = root.path().join("run/systemd/resolve/stub-resolv.conf");
        fs::write(stub, "nameserver 127.0.0.53\n").unwrap();
        root
    }

    #[test]
    fn links_are_followed_below_the_root() {
        for target in [
            "../run/systemd/resolve/stub-resolv.conf",
            "/run/systemd/resolve/stub-resolv.conf",
            "/../../run/./systemd/resolve/stub-resolv.conf",
            "/var/run/systemd/resolve/stub-resolv.conf",
        ] {
            let root = root();
            fs::create_dir(root.path().join("var")).unwrap();
            symlink("/run", root.path().join("var/run")).unwrap();
            symlink(target, root.path().join("etc/resolv.conf")).unwrap();
            let text = read(root.path(), "/etc/resolv.conf").unwrap();
            assert_eq!(text, "nameserver 127.0.0.53\n", "{target}");
        }
    }

    #[test]
    fn a_root_may_be_that_of_a_process() {
        let root = root();
        let path = root.path().join("run/systemd/resolve/stub-resolv.conf");
        let text = read(Path::new("/proc/self/root"), path.to_str().unwrap());
        assert_eq!(text.unwrap(), "nameserver 127.0.0.53\n");
    }

    #[test]
    fn what_is_no_file_is_an_error() {
        let root = root();
        let etc = root.path().join("etc");
        symlink("circle", etc.join("circle")).unwrap();
        symlink("/nowhere", etc.join("broken")).unwrap();
        for name in ["/etc/circle", "/etc/broken", "/etc/missing", "/etc", "/"] {
            assert!(read(root.path(), name).is_err(), "{name}");
        }
    }
}
