//! How much a training may keep between forward and backward: by the memory this host, or this container, has left.

use engine::MemoryLevel;
use engine::config::ModelConfig;
use engine::lora::AdapterShape;
use engine::train::{RunShape, TooLarge, plan_memory};

/// The fastest level of a training that fits into `available` bytes; the leanest where none seems to, as the estimate is from above, and
/// the fastest where nobody knows.
pub(super) fn level(
    model: &ModelConfig,
    adapter: &AdapterShape,
    shape: RunShape,
    available: Option<u64>,
) -> (MemoryLevel, Option<TooLarge>) {
    let Some(available) = available else {
        return (MemoryLevel::KeepAll, None);
    };
    match plan_memory(model, adapter, shape, available) {
        Ok(level) => (level, None),
        Err(too_large) => (MemoryLevel::LayerInputs, Some(too_large)),
    }
}

/// `None` where this system does not say. Bytes.
pub(super) fn available_bytes() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let host = read("/proc/meminfo").and_then(|text| host_bytes(&text))?;
    let container = || {
        container_bytes(
            &read("/sys/fs/cgroup/memory.max")?,
            &read("/sys/fs/cgroup/memory.current")?,
            &read("/sys/fs/cgroup/memory.stat")?,
        )
    };
    Some(container().map_or(host, |container| container.min(host)))
}

/// Source: proc(5), `/proc/meminfo`, in units of 1024 bytes.
fn host_bytes(meminfo: &str) -> Option<u64> {
    let kib = value(meminfo, "MemAvailable:")?;
    Some(kib * 1024)
}

/// `None` without a limit. Source: the kernel's cgroup-v2.rst, "Memory Interface Files"; file pages that are not in
/// use are given up before anything else.
fn container_bytes(max: &str, current: &str, stat: &str) -> Option<u64> {
    let max: u64 = max.trim().parse().ok()?;
    let current: u64 = current.trim().parse().ok()?;
    let reclaimable = value(stat, "inactive_file").unwrap_or(0);
    Some(max.saturating_sub(current.saturating_sub(reclaimable)))
}

/// The number after `name` at the beginning of a line.
fn value(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_read() {
        let meminfo = "MemTotal:  8 kB\nMemFree:   1 kB\nMemAvailable:    3 kB\n";
        assert_eq!(host_bytes(meminfo), Some(3 * 1024));
        assert_eq!(host_bytes("MemTotal: 8 kB\n"), None);
        let stat = "anon 5\ninactive_file 20\nactive_file 7\n";
        assert_eq!(container_bytes("100\n", "60\n", stat), Some(60));
        assert_eq!(container_bytes("100\n", "130\n", stat), Some(0));
        assert_eq!(container_bytes("max\n", "60\n", stat), None);
    }
}
