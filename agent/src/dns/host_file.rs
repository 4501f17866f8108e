//! Files of the host's, read from within the agent's container.
//!
//! The host's root is seen through its first process. A link there that begins with a
//! slash, as `/etc/resolv.conf` is where systemd-resolved manages it, would lead into the
//! agent's own root if the kernel followed it; so links are followed here. (`openat2` with
//! `RESOLVE_IN_ROOT` does that too, since Linux 5.6 only.)

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

/// As many as the kernel follows.
const LINKS_MAX: usize = 40;
/// What is read is a few lines; a list of blocked hosts may have some thousands.
const BYTES_MAX: u64 = 4 << 20;

/// The text of a file below a root, whose links stay below it as well.
pub fn read(root: &Path, path: &str) -> io::Result<String> {
    let path = follow(root, Path::new(path))?;
    // A pipe could be waited for without an end.
    if !fs::metadata(&path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
    }
    let mut text = Vec::new();
    File::open(path)?.take(BYTES_MAX).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn follow(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut ahead = parts(path);
    // Where that led so far, below the root.
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
            // It is there and no link.
            Err(err) if err.kind() == io::ErrorKind::InvalidInput => at.push(part),
            Err(err) => return Err(err),
        }
    }
    Ok(root.join(at))
}

/// The parts of a path, the first one last.
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
