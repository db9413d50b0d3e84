//! What the process and its node's connection table take.
//!
//! In: /proc. Out: [`Process`] and [`Conntrack`]. What always holds: what cannot be read is absent, not zero.

use std::fs;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

/// Resources of this process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Process {
    /// User and system time.
    pub cpu: Option<Duration>,
    /// Bytes.
    pub resident: Option<u64>,
    /// Bytes.
    pub virtual_memory: Option<u64>,
    /// Open descriptors.
    pub open_fds: Option<u64>,
    /// The soft limit of them.
    pub max_fds: Option<u64>,
    /// Since the epoch.
    pub started: Option<Duration>,
}

impl Process {
    /// As it is now.
    pub fn read() -> Self {
        let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let ticks = positive(sysconf(SysconfVar::CLK_TCK));
        let page = positive(sysconf(SysconfVar::PAGE_SIZE));
        let stat = Stat::parse(&text);
        let time = |count: u64| Some(Duration::from_millis(count.saturating_mul(1000) / ticks?));
        let boot = fs::read_to_string("/proc/stat").ok().and_then(|text| boot_time(&text));
        Self {
            cpu: stat.as_ref().and_then(|stat| time(stat.user.saturating_add(stat.system))),
            resident: stat.as_ref().and_then(|stat| Some(stat.pages.saturating_mul(page?))),
            virtual_memory: stat.as_ref().map(|stat| stat.bytes),
            open_fds: fs::read_dir("/proc/self/fd").ok().and_then(|entries| u64::try_from(entries.count()).ok()),
            max_fds: fs::read_to_string("/proc/self/limits").ok().and_then(|text| open_files(&text)),
            started: stat.as_ref().and_then(|stat| Some(time(stat.start)? + boot?)),
        }
    }
}

fn positive(value: nix::Result<Option<i64>>) -> Option<u64> {
    value.ok().flatten().and_then(|value| u64::try_from(value).ok()).filter(|value| *value > 0)
}

/// What is used of proc_pid_stat(5).
#[derive(Debug, PartialEq)]
struct Stat {
    user: u64,
    system: u64,
    start: u64,
    bytes: u64,
    pages: u64,
}

impl Stat {
    /// The second field is a name that may hold anything; the fields behind its bracket are numbers.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // Field 3 of the manual page is the first one here.
        let field = |number: usize| fields.get(number - 3)?.parse().ok();
        Some(Self { user: field(14)?, system: field(15)?, start: field(22)?, bytes: field(23)?, pages: field(24)? })
    }
}

fn boot_time(stat: &str) -> Option<Duration> {
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    seconds.trim().parse().ok().map(Duration::from_secs)
}

fn open_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The connection table of the calling thread's network namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conntrack {
    /// Connections in it.
    pub entries: Option<u64>,
    /// How many there may be.
    pub limit: Option<u64>,
}

impl Conntrack {
    /// As it is now.
    pub fn read() -> Self {
        let number = |name: &str| {
            fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}")).ok()?.trim().parse().ok()
        };
        Self { entries: number("count"), limit: number("max") }
    }
}

#[cfg(test)]
mod tests {
    use std::process;

    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let rest = "S 1 1 1 0 -1 4194304 100 0 0 0 7 5 0 0 20 0 3 0 12345 1048576 256 18446744073709551615";
        let expected = Stat { user: 7, system: 5, start: 12345, bytes: 1_048_576, pages: 256 };
        assert_eq!(Stat::parse(&format!("42 (a) S (b c)) {rest}")), Some(expected));
        assert_eq!(Stat::parse("42 (a"), None);
        assert_eq!(open_files("Limit Soft Hard\nMax open files            1024     4096    files\n"), Some(1024));
        assert_eq!(open_files("Max open files            unlimited     unlimited    files\n"), None);
    }

    #[test]
    fn everything_is_known_of_a_running_process() {
        let read = Process::read();
        let all = (read.cpu, read.resident, read.virtual_memory, read.open_fds, read.started);
        assert!(matches!(all, (Some(_), Some(1_000_000..), Some(1_000_000..), Some(3..), Some(_))), "{read:?}");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
        let age = now.saturating_sub(read.started.expect("a start"));
        let elapsed = process::Command::new("ps").args(["-o", "etimes=", "-p", &process::id().to_string()]).output();
        let elapsed: u64 = String::from_utf8_lossy(&elapsed.expect("procps").stdout).trim().parse().expect("seconds");
        assert!(age.as_secs().abs_diff(elapsed) <= 2, "{age:?} {elapsed}");
    }
}
