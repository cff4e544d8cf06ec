//! The memory of this machine, or of the control group that the process runs in, as Linux tells it.

use std::path::Path;

/// Bytes of memory in all; `None` where the system does not tell.
pub(crate) fn total_memory() -> Option<u64> {
    let machine = meminfo("MemTotal:");
    let group = number("/sys/fs/cgroup/memory.max");
    [machine, group].into_iter().flatten().min()
}

/// Bytes of memory that a process could take now; `None` where the system does not tell.
pub(crate) fn available_memory() -> Option<u64> {
    let machine = meminfo("MemAvailable:");
    // Pages of files count as used, but are given up when they are needed.
    let used = number("/sys/fs/cgroup/memory.current")
        .zip(group_files())
        .map(|(used, files)| used.saturating_sub(files));
    let limit = number("/sys/fs/cgroup/memory.max");
    let group = limit
        .zip(used)
        .map(|(limit, used)| limit.saturating_sub(used));
    [machine, group].into_iter().flatten().min()
}

fn meminfo(field: &str) -> Option<u64> {
    let kibibytes = field_of(Path::new("/proc/meminfo"), field)?;
    Some(kibibytes * 1024)
}

fn group_files() -> Option<u64> {
    field_of(Path::new("/sys/fs/cgroup/memory.stat"), "file")
}

/// The number behind a name at the beginning of a line.
fn field_of(path: &Path, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then(|| words.next()?.parse().ok())?
    })
}

/// The number in a file; `None` for `max`, which is none.
fn number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_is_known_and_not_all_in_use() {
        let (total, available) = (total_memory().unwrap(), available_memory().unwrap());
        assert!(0 < available && available < meminfo("MemTotal:").unwrap());
        assert!(total >= 1 << 20, "{total}");
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stat");
        std::fs::write(&path, "anon 7\nfile_mapped 8\nfile 9\nshmem x\n").unwrap();
        assert_eq!(field_of(&path, "file"), Some(9));
        assert_eq!(field_of(&path, "shmem"), None);
        assert_eq!(field_of(&path, "gone"), None);
        assert_eq!(field_of(&path.join("none"), "file"), None);
    }
}
