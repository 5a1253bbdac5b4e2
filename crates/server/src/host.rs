//! What the machine, the container and the shell allow the process to use.

use std::fs;
use std::path::Path;

/// The assumed memory, in bytes, if the system reports none.
const UNKNOWN: usize = 1 << 30;

/// Returns the bytes of memory that this process may use. The result is the smallest of three values: the machine's
/// memory, the limits of the process's control groups, and half of the limit on the address space. The other half is
/// for stacks, and for address space that the allocator cannot use again: jemalloc keeps the address space of memory
/// that it gave back.
pub(crate) fn memory() -> usize {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let machine = read(Path::new("/proc/meminfo")).and_then(|info| total(&info));
    let address_space = read(Path::new("/proc/self/limits")).and_then(|limits| address_space(&limits));
    let groups = read(Path::new("/proc/self/cgroup")).map_or_else(Vec::new, |groups| group_limits(&groups, read));
    let limits = groups.into_iter().chain(machine).chain(address_space);
    limits.min().unwrap_or(UNKNOWN)
}

/// Returns the machine's memory, from `/proc/meminfo`.
fn total(info: &str) -> Option<usize> {
    let total = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: usize = total.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

/// Returns half of the soft limit on the address space (`ulimit -v`), from `/proc/self/limits`.
fn address_space(limits: &str) -> Option<usize> {
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    let limit: usize = limit.split_whitespace().next()?.parse().ok()?;
    Some(limit / 2)
}

/// Returns the memory limits of control groups and of their parents, for groups as in `/proc/self/cgroup`.
fn group_limits(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Vec<usize> {
    let mut limits = Vec::new();
    for line in groups.lines() {
        // "number:controllers:path"; version 2 has no controllers.
        let mut fields = line.splitn(3, ':').skip(1);
        let (mount, file) = match fields.next() {
            Some("") => ("/sys/fs/cgroup", "memory.max"),
            Some(controllers) if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let path = Path::new(fields.next().unwrap_or_default().trim_start_matches('/'));
        // In a container, the mount may show the container's own group as its root.
        for parent in path.ancestors() {
            let limit = read(&Path::new(mount).join(parent).join(file));
            limits.extend(limit.and_then(|limit| limit.trim().parse::<usize>().ok()));
        }
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_may_use_some_memory() {
        assert!((1 << 24..1 << 50).contains(&memory()), "{}", memory());
    }

    #[test]
    fn the_total_of_the_machine_is_in_kilobytes() {
        assert_eq!(
            total("MemTotal:       24566280 kB\nMemFree: 1 kB\n"),
            Some(24_566_280 * 1024)
        );
        assert_eq!(total("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn half_of_the_soft_limit_of_the_address_space_counts() {
        let limits =
            |soft| format!("Limit  Soft Limit  Hard Limit  Units\nMax address space  {soft}  unlimited  bytes\n");
        assert_eq!(address_space(&limits("1073741824")), Some(1 << 29));
        assert_eq!(address_space(&limits("unlimited")), None);
    }

    #[test]
    fn limits_of_parent_groups_count() {
        let files = |path: &Path| match path.to_str()? {
            "/sys/fs/cgroup/a/b/memory.max" => Some("max\n".to_owned()),
            "/sys/fs/cgroup/a/memory.max" => Some("2000\n".to_owned()),
            "/sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes" => Some("1000\n".to_owned()),
            "/sys/fs/cgroup/memory/memory.limit_in_bytes" => Some("9223372036854771712\n".to_owned()),
            _ => None,
        };
        assert_eq!(group_limits("0::/a/b\n", files), [2000]);
        let old = "3:cpu,cpuacct:/docker/1\n2:memory:/docker/1\n";
        assert_eq!(group_limits(old, files), [1000, 9223372036854771712]);
    }
}
